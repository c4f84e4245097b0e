"""`prefect-ray-worker status`: shows what a work pool's workers, clusters and runs do now."""

import asyncio
import json as json_module
import shlex
from bisect import bisect_left
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prefect_ray_worker.commands.terminal import console, errors, length_of, print_line, print_text
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.shared.plain_text import plain

if TYPE_CHECKING:
    from prefect_ray_worker.commands.overview import Overview

_WATCH_SECONDS = 2.0
# The id of a job has 57 characters; in a narrower window, the other columns break into many lines.
_WIDTH_FOR_JOBS = 150
_STYLES = {
    "Running": "blue",
    "Pending": "yellow",
    "InfrastructurePending": "yellow",
    "Late": "red",
    "Cancelling": "magenta",
}


async def status(
    *,
    pool: Annotated[str, Parameter(name=["--pool", "-p"])],
    watch: bool = False,
    json: bool = False,
    most: Annotated[int, Parameter(validator=Number(gte=1))] = 100,
) -> int:
    """Show the workers, clusters and runs of a work pool.

    It lists each run that is due or active, with its state and for how long it has had it, its Ray
    Job, and what it is waiting for. It changes nothing. It sends requests only to clusters that the
    work pool or this machine's settings name.

    Exit code: 0; 2 for a bad call, or if Prefect cannot be reached. With `--watch`, only the first
    look can fail; later it says what is wrong, and looks again.

    Example: `prefect-ray-worker status --pool research --watch`

    Args:
        pool: Name of the work pool.
        watch: Refresh every two seconds, until Ctrl-C. On a terminal it lists as many runs as the
            window has lines for and counts the others; a narrow one leaves out the Ray Jobs.
        json: Print one JSON document; with `--watch`, one on each line.
        most: Largest number of runs to list, the oldest first. Further runs are only counted.
    """
    if not watch:
        overview = await _look(pool, most)
        if json:
            print_line(json_of(overview, indent=2))
        else:
            console().print(table_of(overview))
        return 0
    shows_live = console().is_terminal and not json
    live = Live(console=console(), auto_refresh=False) if shows_live else None
    with live or nullcontext():
        overview = await _look(pool, most)
        while True:
            if live is not None:
                live.update(fitting(overview, console()), refresh=True)
            elif json:
                print_line(json_of(overview))
            else:
                console().print(table_of(overview))
            overview = await _look_again(pool, most)


async def _look_again(pool: str, most: int) -> "Overview":
    """Return the next overview; an API that is away, for example restarting, ends no watch."""
    said = ""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        try:
            return await _look(pool, most)
        except InvalidConfiguration as exc:
            if str(exc) != said:
                said = str(exc)
                print_text(errors(), Text(plain(said)))


async def _look(pool: str, most: int) -> "Overview":
    from prefect_ray_worker.commands.overview import overview_of
    from prefect_ray_worker.doctor.work_pool import open_prefect, read_ray_pool

    async with open_prefect(f"work pool {pool!r}") as client:
        found = await read_ray_pool(pool, client)
        return await overview_of(client, found, most_runs=most)


def json_of(overview: "Overview", *, indent: int | None = None) -> str:
    """Return an overview for machines; the fields are those of `Overview`, times in seconds."""
    return json_module.dumps(asdict(overview), indent=indent, default=str)


def fitting(overview: "Overview", to: Console) -> RenderableType:
    """Return an overview for a window: it counts the last runs if there is no line for them."""
    draw = partial(table_of, overview, with_jobs=to.width >= _WIDTH_FOR_JOBS)

    def is_too_high(runs: int) -> bool:
        return len(to.render_lines(draw(most=runs))) > to.height

    numbers = range(1, len(overview.runs) + 1)
    return draw(most=bisect_left(numbers, True, key=is_too_high))


def table_of(
    overview: "Overview", *, most: int | None = None, with_jobs: bool = True
) -> RenderableType:
    """Return an overview for people.

    Args:
        overview: What to show.
        most: How many runs the window has lines for; None for all.
        with_jobs: Whether to name the job of each run.
    """
    slots = "" if overview.limit is None else f", {overview.slots} of {overview.limit} slots taken"
    return Group(
        Text(f"Work pool {plain(overview.pool)}: {overview.state}{slots}", style="bold"),
        Text(),
        _workers(overview),
        Text(),
        _clusters(overview),
        Text(),
        _runs(overview, len(overview.runs) if most is None else most, with_jobs=with_jobs),
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _workers(overview: "Overview") -> RenderableType:
    none_online = Text(
        f"No worker is online: prefect worker start --pool {shlex.quote(plain(overview.pool))}",
        style="red",
    )
    if not overview.workers:
        return none_online
    table = _table("WORKER", "STATUS", "LAST HEARTBEAT", _number_of_runs(overview))
    for worker in overview.workers:
        seen = worker.silent_seconds
        table.add_row(
            plain(worker.name),
            Text("online", "green") if worker.is_online else Text("offline", "red"),
            "never" if seen is None else f"{length_of(seen)} ago",
            str(worker.runs),
        )
    if any(worker.is_online for worker in overview.workers):
        return table
    return Group(table, none_online)


def _number_of_runs(overview: "Overview") -> str:
    return "LISTED RUNS" if overview.more_runs else "RUNS"


def _clusters(overview: "Overview") -> RenderableType:
    if not overview.clusters:
        return Text("No cluster is in use.")
    table = _table("CLUSTER", "ANSWERS", "", _number_of_runs(overview))
    for cluster in overview.clusters:
        answers = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("-")}
        table.add_row(
            plain(cluster.cluster),
            answers[cluster.answers],
            plain(cluster.says),
            str(cluster.runs),
        )
    return table


def _runs(overview: "Overview", most: int, *, with_jobs: bool) -> RenderableType:
    if not overview.runs:
        return Text("No run is due or running.")
    jobs = ["RAY JOB"] if with_jobs else []
    table = _table("RUN", "STATE", "FOR", *jobs, "WORKER", "WAITS FOR")
    for run in overview.runs[:most]:
        table.add_row(
            plain(run.name),
            Text(plain(run.state), _STYLES.get(run.state, "")),
            length_of(run.state_seconds),
            *([plain(run.job_id or "-")] if with_jobs else []),
            plain(run.worker or "-"),
            plain(run.waits_for or ""),
        )
    more = overview.more_runs + len(overview.runs[most:])
    if not more:
        return table
    why = "--most" if most >= len(overview.runs) else "the window is too low"
    return Group(table, Text(f"and {more} more runs ({why})"))
