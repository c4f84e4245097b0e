"""A log and a Prefect in memory, both with troubles on order, and a clock that does not wait."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from prefect_ray_worker.errors import (
    AgentUnreachable,
    ClusterUnreachable,
    LogNotFound,
    LogsRefused,
    LogsUnclear,
)
from prefect_ray_worker.logs.bridge import LogBridge
from prefect_ray_worker.logs.classify import Shaped, Shaper
from prefect_ray_worker.logs.lines import LineSplitter
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.prefect_api.logs import FoundLogs, SentLog
from prefect_ray_worker.ray_api.logs import LogPiece
from prefect_ray_worker.ray_api.models import JobDetails

JOB = "prefect-job-1"
LONGEST = 25_000

T = TypeVar("T")


PAGE = 200


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select

        def jump(timeout: float | None = None) -> Any:
            if timeout:
                self._now += timeout
            return select(0)

        self._selector.select = jump

    def time(self) -> float:
        return self._now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end without waiting for anything."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


class MemoryPrefect:
    """The logs of one run. `troubles` says what happens to the next requests, then all is well.

    Attributes:
        logs: What it has, in the order of arrival.
        troubles: For each request `fine`, `lost` (it fails), or `unclear` (it works and fails).
        longest_batch: The most logs that one request brought.
        precision: To so many microseconds it keeps a time.
        refused: Messages that it does not take.
    """

    def __init__(self, troubles: Iterable[str] = ()) -> None:
        self.logs: list[SentLog] = []
        self.troubles = iter(troubles)
        self.longest_batch = 0
        self.precision = 1
        self.refused: set[str] = set()

    def undisturbed(self) -> nullcontext[None]:
        return nullcontext()

    async def post(self, logs: Sequence[SentLog]) -> None:
        await asyncio.sleep(0)
        self.longest_batch = max(self.longest_batch, len(logs))
        if any(log.message in self.refused for log in logs):
            raise LogsRefused("HTTP 422")
        trouble = next(self.troubles, "fine")
        if trouble != "lost":
            self.logs += logs
        if trouble != "fine":
            raise LogsUnclear("no answer")

    async def find(
        self, *, after: datetime, before: datetime | None, newest_first: bool, offset: int
    ) -> FoundLogs:
        await asyncio.sleep(0)
        if next(self.troubles, "fine") != "fine":
            raise LogsUnclear("no connection")
        found = sorted(
            (
                self._kept(log)
                for log in self.logs
                if after <= log.timestamp and (before is None or log.timestamp <= before)
            ),
            key=lambda log: log.timestamp,
            reverse=newest_first,
        )
        page = found[offset : offset + PAGE]
        return FoundLogs(page, offset + len(page) if page else None)

    async def find_all(self, *, after: datetime, before: datetime, offset: int) -> FoundLogs:
        return await self.find(after=after, before=before, newest_first=False, offset=offset)

    @property
    def shown(self) -> list[Shaped]:
        """What a user reads: by time, line for line."""
        return [
            Shaped(log.level, line)
            for log in sorted(self.logs, key=lambda log: log.timestamp)
            for line in log.message.split("\n")
        ]

    def _kept(self, log: SentLog) -> SentLog:
        micros = log.timestamp.microsecond // self.precision * self.precision
        return replace(log, timestamp=log.timestamp.replace(microsecond=micros))


class MemoryLogs:
    """The log of one job, on an agent and on a dashboard.

    Attributes:
        data: The log; None while there is none.
        troubles: For each read `fine`, `agent` (it cannot be asked) or `all` (nobody answers).
        room: The most bytes of one answer.
        reads: By which way each answer came.
    """

    def __init__(self, troubles: Iterable[str] = ()) -> None:
        self.data: bytes | None = b""
        self.troubles = iter(troubles)
        self.room = 1 << 30
        self.reads: list[str] = []
        self._trouble = "fine"

    async def from_agent(self, agent: str, name: str, *, start: int, room: int) -> LogPiece:
        await asyncio.sleep(0)
        self._trouble = next(self.troubles, "fine")
        if self._trouble != "fine":
            raise AgentUnreachable("no way")
        if self.data is None:
            raise LogNotFound("gone")
        self.reads.append("agent")
        return self._piece(self.data, start, room)

    async def from_dashboard(
        self, node_id: str, name: str, *, lines: int, skip: int, room: int
    ) -> LogPiece:
        await asyncio.sleep(0)
        trouble, self._trouble = self._trouble, "fine"
        if trouble == "all":
            raise ClusterUnreachable("no way")
        if self.data is None:
            raise LogNotFound("gone")
        self.reads.append("dashboard" if lines == -1 else f"last {lines}")
        kept = self.data.splitlines(keepends=True) if b"\r" not in self.data else [self.data]
        shown = self.data if lines == -1 else b"".join(kept[-lines:])
        return self._piece(shown, skip, room)

    def _piece(self, data: bytes, start: int, room: int) -> LogPiece:
        end = start + min(room, self.room)
        return LogPiece(data[start:end], end >= len(data))


def details(status: str = "RUNNING", *, agent: str | None = "http://10.0.0.9:52365") -> JobDetails:
    started = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
    return JobDetails(
        submission_id=JOB,
        status=status,
        start_time=started,
        driver_node_id="ab" * 28,
        driver_agent_http_address=agent,
        entrypoint="exec python -m prefect_ray_worker.driver",
    )


def bridge(logs: MemoryLogs, prefect: MemoryPrefect, reads: ClusterLogs | None = None) -> LogBridge:
    """Return a bridge that has seen its job run."""
    made = LogBridge(
        JOB,
        attempt=1,
        reads=reads or ClusterLogs(logs),  # type: ignore[arg-type]
        sink=prefect,
        longest=LONGEST,
    )
    made.observe(details())
    return made


def shape_whole(data: bytes) -> list[Shaped]:
    """Return what a log becomes that is read in one piece."""
    splitter, shaper = LineSplitter(LONGEST), Shaper(JOB, longest=LONGEST)
    lines = [*splitter.feed(data), *splitter.finish()]
    return [shaped for line in lines for shaped in shaper.shape(line, now_ms=0)]
