"""`RunLog`: the log of a flow run, each line once, also while the run goes on."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from prefect.logging.clients import get_logs_subscriber

from prefect_ray_worker.errors import InvalidConfiguration, without_groups
from prefect_ray_worker.prefect_api.answers import ask_patiently
from prefect_ray_worker.prefect_api.log_window import LogWindow
from prefect_ray_worker.runs.recovery.labels import UNFINISHED_LABEL, labelled_owner
from prefect_ray_worker.shared.run_rules import Patience

# Also where the server streams its logs: what a broken connection has missed comes at once then.
_READ_SECONDS = 1.0
# Where nothing says that a log is complete: the driver's process sends its lines every 2 s (3.8.8).
_QUIET_SECONDS = 4.0
# A log that is not complete and stays quiet may wait for a worker that is dead.
_LONGEST_QUIET_SECONDS = 15.0
_WAITING_LINES = 10_000
# A server that is being restarted ends no look at a log.
_API_AWAY_SECONDS = 60.0

T = TypeVar("T")
IsComplete = Callable[[FlowRun], bool | None]


class RunLog:
    """Reads the log of a flow run.

    Attributes:
        run: The run, as it was when it was last looked at.

    Args:
        client: An open client.
        run: The run.
    """

    def __init__(self, client: PrefectClient, run: FlowRun) -> None:
        self._client = client
        self.run = run
        self._shown: dict[tuple[datetime, str, str], None] = {}
        self._window = LogWindow()

    async def lines(self) -> list[Log]:
        """Return the lines that Prefect has and that were not returned yet, in order of time."""
        return await self._unread(None)

    async def follow(self, show: Callable[[Log], None], is_complete: IsComplete) -> None:
        """Show each line as it arrives, until the run has ended and its log is complete.

        Lines come through Prefect's stream of logs where the server has it switched on
        (`PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED`), and are read once a second everywhere.

        Args:
            show: Takes a line.
            is_complete: Returns whether all lines of an ended run are in Prefect; None if nothing
                tells: then a log that stays quiet for 4 s has ended. One that is not complete is
                waited for until nothing has come for 15 s.

        Raises:
            InvalidConfiguration: The run was deleted.
            Exception: The Prefect API is away for longer than a minute.
        """
        with without_groups():
            await self._follow(show, is_complete)

    async def _follow(self, show: Callable[[Log], None], is_complete: IsComplete) -> None:
        send, receive = anyio.create_memory_object_stream[Log](_WAITING_LINES)
        async with receive, anyio.create_task_group() as tasks:
            tasks.start_soon(_stream, self.run.id, send, name="log-stream")
            quiet_since = 0.0
            has_ended = False
            while True:
                for line in await self._unread(self._window.next_look().when):
                    quiet_since = anyio.current_time()
                    show(line)
                if has_ended and await self._is_over(is_complete, quiet_since):
                    break
                with anyio.move_on_after(_READ_SECONDS):
                    async for line in receive:
                        if self._is_new(line):
                            show(line)
                if not has_ended:
                    self.run = await self._read_run()
                    if self.run.state is not None and self.run.state.is_final():
                        has_ended, quiet_since = True, anyio.current_time()
            tasks.cancel_scope.cancel()
        # A line that is older than the overlaps, and was sent late, is in the whole log only.
        for line in await self._unread(None):
            show(line)

    async def _is_over(self, is_complete: IsComplete, quiet_since: float) -> bool:
        quiet = anyio.current_time() - quiet_since
        if quiet > _LONGEST_QUIET_SECONDS:
            return True
        said = is_complete(self.run)
        if said is False:
            self.run = await self._read_run()
            return False
        # The last lines may have arrived between the look at the log and the look at the run.
        return quiet > (_READ_SECONDS if said else _QUIET_SECONDS)

    async def _read_run(self) -> FlowRun:
        try:
            return await _ask(lambda: self._client.read_flow_run(self.run.id))
        except ObjectNotFound:
            raise InvalidConfiguration(
                f"The flow run {self.run.name} ({self.run.id}) was deleted, and its log with it. "
                "Choose another run: `prefect flow-run ls` lists them."
            ) from None

    async def _unread(self, since: datetime | None) -> list[Log]:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.run.id]))
        if since is not None:
            wanted.timestamp = LogFilterTimestamp.model_validate({"after_": since})
        found: list[Log] = []
        read = 0

        async def next_page() -> list[Log]:
            return await self._client.read_logs(wanted, offset=read, sort=LogSort.TIMESTAMP_ASC)

        while page := await _ask(next_page):
            read += len(page)
            # A late line moves those after it on to the next page.
            found += [line for line in page if self._is_new(line)]
        return found

    def _is_new(self, line: Log) -> bool:
        """Take note of a line; return whether it is a new one. The stream gives it another id."""
        key = (line.timestamp, line.name, line.message)
        if key in self._shown:
            return False
        self._shown[key] = None
        self._window.saw(line.timestamp)
        return True


def is_complete(run: FlowRun) -> bool | None:
    """Return whether the whole log of a run's last attempt is in Prefect; None if nobody says."""
    owned = labelled_owner(run.labels)
    if owned is None:
        return None
    said = run.labels.get(f"{UNFINISHED_LABEL}.{owned[0]}")
    return None if said is None else said == "no"


async def _ask(ask: Callable[[], Awaitable[T]]) -> T:
    patience = Patience(_API_AWAY_SECONDS, now=anyio.current_time())
    return await ask_patiently(ask, patience, on_wait=_say_nothing)


def _say_nothing(_: Exception, __: float) -> None:
    """Let the lines of the log stand alone."""


async def _stream(run_id: UUID, lines: MemoryObjectSendStream[Log]) -> None:
    """Pass on what the server streams; a server that does not is no error."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    async with lines:
        try:
            async with get_logs_subscriber(wanted) as subscriber:
                async for line in subscriber:
                    await lines.send(line)
        except Exception:  # noqa: BLE001 (Prefect raises many kinds; the lines are read anyway)
            await anyio.sleep_forever()
        await anyio.sleep_forever()
