"""`LogForwarding`: brings what a job prints to its flow run, for as long as the run is ours."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from logging import Logger, LoggerAdapter
from typing import Any

from prefect_ray_worker import metrics
from prefect_ray_worker.errors import LogsUnclear
from prefect_ray_worker.logs.bridge import LogBridge
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.prefect_api.answers import is_passing_error
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
        self._job: JobDetails | None = None
        self._has_ended = False
        self._new_bridge = partial(
            LogBridge,
            job_id,
            attempt=attempt,
            reads=reads,
            sink=_OwnedLogs(sink, owns),
            longest=longest_message(),
            on_end=on_end,
        )
        self._bridge = self._new_bridge(is_new=is_new)

    @property
    def is_complete(self) -> bool:
        """Whether the log is in Prefect to its end, or Prefect was told that it is lost."""
        return self._bridge.is_complete

    async def run(self) -> None:
        """Forward until the job has ended and all of its log is in Prefect, or the log is gone.

        If Prefect is still away when the job has ended, the rest is left to the next look for runs
        of which something is left to do.
        """
        try:
            await self._bridge.run()
            while self._bridge.has_given_up and not self._has_ended:
                self._begin_anew()
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
            self._job = job
            self._has_ended |= job.is_terminal
            self._bridge.observe(job)

    def end(self) -> None:
        """Forward the log to its present end, and no further."""
        self._has_ended = True
        self._bridge.end()

    def _begin_anew(self) -> None:
        """Replace a bridge that has given up; the next one asks how far it has come."""
        self._count()
        self._lines = self._bytes = 0
        self._bridge = self._new_bridge()
        if self._job is not None:
            self._bridge.observe(self._job)

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
        try:
            is_ours = await self._owns()
        except Exception as exc:
            if not is_passing_error(exc):
                raise
            raise LogsUnclear(f"Prefect does not say whose the run is: {exc}") from exc
        if not is_ours:
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
