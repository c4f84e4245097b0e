"""`prefect-ray-worker logs`: prints the log of a flow run, and follows it."""

import re
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from prefect_ray_worker.commands.terminal import console, errors
from prefect_ray_worker.shared.plain_text import plain

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, Log

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The styles of Prefect's own console for the levels of Python's logging.
_STYLES = ((50, "bold red"), (40, "red"), (30, "yellow"), (20, "cyan"), (0, "blue"))
_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}


async def logs(
    run: str,
    /,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
    tail: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
) -> int:
    """Print the log of a flow run: the lines of worker, driver and tasks, sorted by time.

    With `--follow` it prints each line as it arrives, until the run has ended and its log is
    complete. It prints the run's state to standard error, so standard output has only the log.

    Exit code: 0; 1 if the followed run did not complete; 2 for a bad call, or if Prefect cannot be
    reached.

    Example: `prefect-ray-worker logs happy-otter --follow`

    Args:
        run: Name or id of the flow run, or the address of its page. If several runs have the name,
            the latest one counts.
        follow: Print new lines until the run has ended.
        tail: Number of existing lines to print, counted from the end. Unset: all.
    """
    from prefect_ray_worker.commands.run_log import RunLog, is_complete
    from prefect_ray_worker.doctor.work_pool import open_prefect

    async with open_prefect(f"the flow run {run!r}") as client:
        found = await _find(client, run)
        log = RunLog(client, found)
        lines = await log.lines()
        for line in lines[len(lines) - min(tail, len(lines)) :] if tail is not None else lines:
            _print(line)
        if not follow:
            return 0
        await log.follow(_print, is_complete)
    state = log.run.state
    said = f": {state.message}" if state is not None and state.message else "."
    name = state.name if state is not None else "unknown"
    errors().print(Text(plain(f"Flow run {log.run.name} is {name}{said}"), style="bold"))
    return 0 if state is not None and state.is_completed() else 1


async def _find(client: "PrefectClient", named: str) -> "FlowRun":
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    from prefect_ray_worker.errors import InvalidConfiguration

    ids: list[str] = _ID.findall(named.lower())
    # The name of a run can contain the id of another one.
    if ids and ("://" in named or ids == [named.strip().lower()]):
        return await _read(client, ids[-1])
    runs = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[named])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=2,
    )
    if not runs and ids:
        return await _read(client, ids[-1])
    if not runs:
        raise InvalidConfiguration(
            f"Prefect has no flow run with the name {named!r}. `prefect flow-run ls` lists them."
        )
    if len(runs) > 1:
        errors().print(f"Several runs are called {named}; this is the latest, {runs[0].id}.")
    return runs[0]


async def _read(client: "PrefectClient", run_id: str) -> "FlowRun":
    from prefect.exceptions import ObjectNotFound

    from prefect_ray_worker.errors import InvalidConfiguration
    from prefect_ray_worker.prefect_api.answers import is_gone

    try:
        return await client.read_flow_run(UUID(run_id))
    except ObjectNotFound as exc:
        if not is_gone(exc):
            raise
        raise InvalidConfiguration(
            f"Prefect has no flow run {run_id}. Check the id, and which server PREFECT_API_URL "
            "names."
        ) from None


def _print(line: "Log") -> None:
    level = _LEVELS.get(line.level, str(line.level))
    head = f"{line.timestamp.astimezone():%H:%M:%S.%f}"[:-3]
    text = Text(f"{head} | ")
    text.append(f"{level:<8}", next(style for least, style in _STYLES if line.level >= least))
    text.append(f" | {plain(line.message)}")
    console().print(text, soft_wrap=True)
