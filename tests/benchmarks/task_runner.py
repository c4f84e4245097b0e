"""Measures task runners side by side, in one run on one machine: only the ratios mean anything.

    python -m tests.benchmarks.task_runner [--tasks N] [--part PART] [--rounds N] [--save FILE]
        [--server NAME=VALUE] [runner ...]

Each runner gets a process of its own, the same Prefect server and the same number of CPUs. Rates
are from the first submit to the last result, in a flow whose processes are warm. The slow ones
get fewer tasks, so that they end; `prefect_ray` and `prefect_dask` have to be installed. With
several rounds the runners take turns, and the table has the medians: a machine whose speed changes
is then the same for all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.record import Chart, record
from tests.prefect_server import prefect_server
from tests.real_ray import TERMS

CPUS = 2
ALL = ["no-op", "async", "waits", "chain", "fan-in", "parameter"]
# For each runner: what share of the tasks it gets, and what it is asked for.
RUNNERS = {
    "prefect_ray_worker": (1, [*ALL, "map", "large", "one for many"]),
    "prefect_ray": (8, ALL),
    "threads": (1, ALL),
    "prefect_dask": (2, ALL),
    "ray": (1, ["large"]),
}
_SECONDS = 1_500
_MORE_FOR_SERVER = {"PREFECT_SERVER_API_MAX_PARAMETER_SIZE": "4000000"}

Results = dict[str, dict[str, float]]


def table(results: Results) -> str:
    rows = list(dict.fromkeys(row for result in results.values() for row in result))
    lines = [f"{'':46}" + "".join(f"{name:>20}" for name in results)]
    for row in rows:
        cells = (
            f"{result[row]:20.2f}" if row in result else f"{'':20}" for result in results.values()
        )
        lines.append(f"{row:46}" + "".join(cells))
    return "\n".join(lines)


def charts(results: Results) -> list[Chart]:
    """Return a chart for each measure that two runners have."""
    found: list[Chart] = []
    for row in dict.fromkeys(row for result in results.values() for row in result):
        figures = {name: result[row] for name, result in results.items() if row in result}
        title, _, unit = row.rpartition(", ")
        unit, _, part = unit.partition(": ")
        title = f"{title}: {part}" if part else title
        if title and len(figures) > 1:
            found.append(Chart(title, unit, figures, "higher" if unit == "tasks/s" else "lower"))
    return found


def measure(
    name: str, tasks: int, parts: list[str], env: dict[str, str], server: int
) -> dict[str, float] | None:
    share, own = RUNNERS[name]
    module = "tests.benchmarks.measured.task_runners"
    arguments = [name, str(CPUS), str(tasks // share), str(server), *(parts or own)]
    command = [sys.executable, "-m", module, *arguments]
    begun = time.monotonic()
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{name} took more than {_SECONDS} s", file=sys.stderr)
        return None
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if done.returncode:
        return None
    found: dict[str, float] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return found


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each row."""
    return {row: statistics.median(found[row] for found in rounds) for row in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runners", nargs="*", default=list(RUNNERS))
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--part", action="append", help="instead of all of them")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--server", action="append", default=[], help="a setting of it, as NAME=VALUE"
    )
    parser.add_argument("--save", type=Path, help="a file for the table")
    options = parser.parse_args()
    arguments = ["--tasks", str(options.tasks)]
    arguments += ["--rounds", str(options.rounds)] if options.rounds > 1 else []
    arguments += [word for setting in options.server for word in ("--server", setting)]
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "server"
        more = {**_MORE_FOR_SERVER, **dict(setting.split("=", 1) for setting in options.server)}
        with prefect_server(home, more) as server:
            env = {
                **os.environ,
                **TERMS,
                "PREFECT_API_URL": server.api_url,
                "PREFECT_HOME": folder,
                "PREFECT_LOGGING_LEVEL": "ERROR",
            }
            for name in options.runners * options.rounds:
                found = measure(name, options.tasks, options.part, env, server.pid)
                if found is not None:
                    rounds.setdefault(name, []).append(found)
    results = {name: medians(found) for name, found in rounds.items()}
    print(table(results))
    if set(options.runners) == set(RUNNERS) and not options.part:
        several = options.rounds if options.rounds > 1 else None
        record(charts(results), rounds=several, arguments=arguments)
    if options.save:
        head = f"python -m {__spec__.name} {' '.join(arguments)}, {datetime.now(UTC):%Y-%m-%d}"
        options.save.write_text(f"{head}\n\n{table(results)}\n")


if __name__ == "__main__":
    main()
