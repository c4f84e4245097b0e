"""`LogForwarding`: brings what a job prints to its flow run, for as long as the run is ours."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from logging import Logger, LoggerAdapter
from typing import Any

from prefect_ray_worker import metrics
from prefect_ray_worker.logs.bridge import LogBridge
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.prefect_api.logs import FoundLogs, LogSink, SentLog, longest_message
from prefect_ray_worker.ray_api.models import JobDetails

Owns = Callable[[], Awaitable[bool]]


class _NotOurs(Exception):
    """Another worker forwards the log."""


class LogForwarding:
    """Forwards the log of one job.

    Args:
        job_id: The job's submission id.
        attempt: Which attempt at its run the job is, counted from 1.
        reads: Reads the logs of its cluster.
        sink: The logs of its flow run.
        owns: Returns whether this process still owns the attempt.
        log: Logs to the flow run.
        is_new: Whether nobody can have forwarded any of it yet; see `LogBridge`.
        on_end: Awaited once all that the flow has printed is in Prefect; see `LogBridge`.
    """

    def __init__(
        self,
        job_id: str,
        *,
        attempt: int,
        reads: ClusterLogs,
        sink: LogSink,
        owns: Owns,
        log: "Logger | LoggerAdapter[Any]",
        is_new: bool = False,
        on_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._log = log
        self._lines = self._bytes = 0
        self._bridge = LogBridge(
            job_id,
            attempt=attempt,
            reads=reads,
            sink=_OwnedLogs(sink, owns),
            longest=longest_message(),
            is_new=is_new,
            on_end=on_end,
        )

    @property
    def is_complete(self) -> bool:
        """Whether the log is in Prefect to its end, or Prefect was told that it is lost."""
        return self._bridge.is_complete

    async def run(self) -> None:
        """Forward until the job has ended and all of its log is in Prefect, or the log is gone."""
        try:
            await self._bridge.run()
        except _NotOurs:
            self._log.info("Another worker forwards the output of the Ray Job from here on.")
        except Exception:  # noqa: BLE001 (whatever a job prints, its run is followed)
            self._log.exception("The output of the Ray Job is not forwarded any more.")
        finally:
            self._count()

    def observe(self, job: JobDetails | None) -> None:
        """Take note of a look at the job.

        Args:
            job: What the cluster showed of it; None if it did not.
        """
        self._count()
        if job is not None:
            self._bridge.observe(job)

    def end(self) -> None:
        """Forward the log to its present end, and no further."""
        self._bridge.end()

    def _count(self) -> None:
        lines, read = self._bridge.lines_forwarded, self._bridge.bytes_read
        metrics.LOG_LINES.inc(lines - self._lines)
        metrics.LOG_BYTES.inc(read - self._bytes)
        self._lines, self._bytes = lines, read
        if read:
            metrics.LOG_LAG.observe(self._bridge.lag_seconds)


class _OwnedLogs(LogSink):
    """The logs of a run, to which this process adds nothing once another worker does."""

    def __init__(self, logs: LogSink, owns: Owns) -> None:
        self._logs = logs
        self._owns = owns

    def undisturbed(self) -> AbstractContextManager[object]:
        return self._logs.undisturbed()

    async def post(self, logs: Sequence[SentLog]) -> None:
        if not await self._owns():
            raise _NotOurs  # this process was frozen, or nothing renews its lease any more
        await self._logs.post(logs)

    async def find(
        self, *, after: datetime, before: datetime | None, newest_first: bool, offset: int
    ) -> FoundLogs:
        return await self._logs.find(
            after=after, before=before, newest_first=newest_first, offset=offset
        )

    async def find_all(self, *, after: datetime, before: datetime, offset: int) -> FoundLogs:
        return await self._logs.find_all(after=after, before=before, offset=offset)
