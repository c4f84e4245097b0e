"""`LogForwarding`: brings what an attempt's job prints to its flow run, while the run is ours."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime

import anyio

from prefect_ray_worker import metrics
from prefect_ray_worker.clusters.poller import Missing, Observation, Seen
from prefect_ray_worker.logs.bridge import LogBridge
from prefect_ray_worker.prefect_api.logs import FoundLogs, LogSink, SentLog, longest_message
from prefect_ray_worker.runs.run import Attempt

_ASK_AGAIN_SECONDS = 1.0


class LogForwarding:
    """Forwards the log of one attempt's job, if its run wants that.

    Args:
        attempt: The attempt.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._log = attempt.log
        self._lines = self._bytes = 0
        self._bridge = (
            LogBridge(
                attempt.job_id,
                reads=attempt.cluster.logs,
                sink=_OwnedLogs(attempt),
                longest=longest_message(),
            )
            if attempt.configuration.forward_logs
            else None
        )

    async def run(self) -> None:
        """Forward until the job has ended and all of its log is in Prefect, or the log is gone."""
        if self._bridge is None:
            return
        try:
            await self._bridge.run()
        except Exception:  # noqa: BLE001 (whatever a job prints, its run is followed)
            self._log.exception("The output of the Ray Job is not forwarded any more.")
        finally:
            self._count(self._bridge)

    def observe(self, observation: Observation, *, arrived: bool) -> None:
        """Take note of a look at the job.

        Args:
            observation: What it showed.
            arrived: Whether the cluster certainly had the job at some time.
        """
        if self._bridge is None:
            return
        self._count(self._bridge)
        if isinstance(observation, Seen):
            self._bridge.observe(observation.details)
        elif isinstance(observation, Missing) and arrived:
            self._bridge.end()

    def _count(self, bridge: LogBridge) -> None:
        lines, read = bridge.lines_forwarded, bridge.bytes_read
        metrics.LOG_LINES.inc(lines - self._lines)
        metrics.LOG_BYTES.inc(read - self._bytes)
        self._lines, self._bytes = lines, read
        if read:
            metrics.LOG_LAG.observe(bridge.lag_seconds)

    def end(self) -> None:
        """Have the log forwarded to its end, and no further."""
        if self._bridge is not None:
            self._bridge.end()


class _OwnedLogs(LogSink):
    """The logs of a run, to which nothing is added once another worker does that."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._logs = attempt.around.logs_of(attempt.run_id)

    def undisturbed(self) -> AbstractContextManager[object]:
        return self._logs.undisturbed()

    async def post(self, logs: Sequence[SentLog]) -> None:
        attempt = self._attempt
        while True:
            if await attempt.around.owns(attempt.run_id, attempt.job_id):
                break
            # This process was frozen, and has lost the run: it is about to be told so.
            await anyio.sleep(_ASK_AGAIN_SECONDS)
        await self._logs.post(logs)

    async def find(
        self, *, after: datetime, before: datetime | None, newest_first: bool, offset: int
    ) -> FoundLogs:
        return await self._logs.find(
            after=after, before=before, newest_first=newest_first, offset=offset
        )
