"""Measures task runners side by side, in one run on one machine: only the ratios mean anything.

    python -m tests.benchmarks.task_runner [--tasks N] [runner ...]

Each runner gets a process of its own, the same Prefect server and the same number of CPUs. Rates
are from the first submit to the last result, in a flow whose processes are warm.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, task

from tests.prefect_server import prefect_server
from tests.real_ray import TERMS

CPUS = 2
RUNNERS = ("prefect_ray_worker", "prefect_ray", "threads", "prefect_dask")
_SECONDS = 900


@task
def nothing(x: int) -> int:
    return x


@task
async def nothing_async(x: int) -> int:
    return x


@task
def short(x: int) -> int:
    time.sleep(0.1)
    return x


@task
def gather(xs: list[int]) -> int:
    return sum(xs)


def make(name: str) -> Any:
    if name == "prefect_ray_worker":
        from prefect_ray_worker import RayTaskRunner

        return RayTaskRunner("local", {"num_cpus": CPUS, "include_dashboard": False})
    if name == "prefect_ray":
        from prefect_ray import RayTaskRunner as Theirs

        init = {"address": "local", "num_cpus": CPUS, "include_dashboard": False}
        return Theirs(init_kwargs=init)
    if name == "prefect_dask":
        from prefect_dask import DaskTaskRunner

        return DaskTaskRunner(cluster_kwargs={"n_workers": CPUS, "threads_per_worker": 1})
    from prefect.task_runners import ThreadPoolTaskRunner

    return ThreadPoolTaskRunner()


def rate(count: int, submit: Callable[[], list[Any]]) -> tuple[float, float]:
    """Return tasks per second, and the driver's milliseconds for each submit."""
    begun = time.perf_counter()
    cpu = time.thread_time()
    futures = submit()
    submitted = (time.thread_time() - cpu) * 1000 / count
    for future in futures:
        future.result()
    return count / (time.perf_counter() - begun), submitted


def chain(length: int) -> list[Any]:
    future = nothing.submit(0)
    for _ in range(length - 1):
        future = nothing.submit(future)
    return [future]


def measure(name: str, count: int) -> dict[str, float]:
    found: dict[str, float] = {}

    @flow(task_runner=make(name))
    def measured(text: str = "") -> None:
        begun = time.perf_counter()
        nothing.submit(0).result()
        found["first task, s"] = time.perf_counter() - begun
        rate(4 * CPUS, lambda: [nothing.submit(i) for i in range(4 * CPUS)])
        found["no-op tasks/s"], found["CPU per submit, ms"] = rate(
            count, lambda: [nothing.submit(i) for i in range(count)]
        )
        few = max(count // 4, 10)
        found["async no-op tasks/s"], _ = rate(
            few, lambda: [nothing_async.submit(i) for i in range(few)]
        )
        found["100 ms tasks/s"], _ = rate(20, lambda: [short.submit(i) for i in range(20)])
        found["chain, tasks/s"], _ = rate(few, lambda: chain(few))
        found["fan-in, tasks/s"], _ = rate(
            few, lambda: [gather.submit([nothing.submit(i) for i in range(few)])]
        )

    @flow(task_runner=make(name))
    def with_large_parameter(text: str) -> None:
        rate(4 * CPUS, lambda: [nothing.submit(i) for i in range(4 * CPUS)])
        few = max(count // 4, 10)
        found["400 kB flow parameter, tasks/s"], _ = rate(
            few, lambda: [nothing.submit(i) for i in range(few)]
        )

    measured()
    with_large_parameter("x" * 400_000)
    found["driver, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return found


def report(results: dict[str, dict[str, float]]) -> None:
    rows = list(dict.fromkeys(row for result in results.values() for row in result))
    print(f"{'':34}" + "".join(f"{name:>20}" for name in results))
    for row in rows:
        cells = (f"{results[name].get(row, float('nan')):20.2f}" for name in results)
        print(f"{row:34}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runners", nargs="*", default=RUNNERS)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.tasks)))
        return
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, prefect_server(Path(folder) / "s") as server:
        env = {
            **os.environ,
            **TERMS,
            "PREFECT_API_URL": server.api_url,
            "PREFECT_HOME": folder,
            "PREFECT_LOGGING_LEVEL": "ERROR",
        }
        for name in options.runners:
            command = [sys.executable, "-m", __spec__.name, "--measure", name]
            count = str(options.tasks if name != "prefect_ray" else options.tasks // 4)
            done = subprocess.run(
                [*command, "--tasks", count], env=env, stdout=subprocess.PIPE, timeout=_SECONDS
            )
            if done.returncode == 0:
                results[name] = json.loads(done.stdout.decode().strip().splitlines()[-1])
            else:
                print(f"{name} could not be measured", file=sys.stderr)
    report(results)


if __name__ == "__main__":
    main()
