"""Asks Prefect how many logs of a job it has: after a restart there is no other memory."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect_ray_worker.flow_run_logs import PAGE, LogSink, SentLog
from prefect_ray_worker.watching.logs.numbering import ENOUGH, Numbering, milliseconds
from prefect_ray_worker.watching.logs.sender import Sender

# The stamps of a burst run ahead of the clock, and two machines may not agree on the time.
_AHEAD = timedelta(days=1)


@dataclass(frozen=True)
class Position:
    """How far an earlier bridge for the same job has come.

    Attributes:
        count: How many logs are in Prefect.
        last_ms: The time of the newest, in milliseconds since the epoch.
        last_message: Its text.
    """

    count: int = 0
    last_ms: int = 0
    last_message: str = ""


async def find_position(
    sink: LogSink, sender: Sender, submission_id: str, *, since: datetime
) -> Position:
    """Ask Prefect for the newest logs of a job, and read the position from their numbers.

    Args:
        sink: The run's logs.
        sender: Asks patiently.
        submission_id: The job.
        since: When it was submitted: older logs are of earlier attempts.

    Raises:
        LogsGivenUp: The API does not answer.
    """
    numbering = Numbering(submission_id)
    until = datetime.now(UTC) + _AHEAD
    newest: list[SentLog] = []
    offset = 0
    while True:
        page = await sender.ask(
            lambda offset=offset: sink.find(
                after=since, before=until, newest_first=True, offset=offset
            )
        )
        newest += page.logs
        if page.is_last or (len(newest) >= ENOUGH and not _is_coarse(newest)):
            break
        offset += PAGE
    if not newest:
        return Position()
    # A server that keeps no microseconds leaves us but to count.
    times = [log.timestamp for log in newest]
    count = len(newest) if _is_coarse(newest) else numbering.read(times[:ENOUGH])
    if not count:
        return Position()
    return Position(count, milliseconds(newest[0].timestamp), newest[0].message)


def _is_coarse(logs: list[SentLog]) -> bool:
    return all(log.timestamp.microsecond % 1000 == 0 for log in logs)
