"""Asks Prefect how many logs of a job it has: after a restart there is no other memory."""

from datetime import datetime

from prefect_ray_worker.logs.numbering import ENOUGH, Numbering
from prefect_ray_worker.logs.sender import Sender
from prefect_ray_worker.prefect_api.logs import PAGE, LogSink, SentLog


async def find_position(
    sink: LogSink, sender: Sender, numbering: Numbering, *, since: datetime
) -> SentLog | None:
    """Let a numbering go on where an earlier bridge for the same job has stopped.

    Args:
        sink: The run's logs.
        sender: Asks patiently.
        numbering: Of the job; new.
        since: When the job was submitted: older logs are of earlier attempts.

    Returns:
        The newest log of the job that Prefect has, if any.

    Raises:
        LogsGivenUp: The API does not answer.
    """
    newest: list[SentLog] = []
    # Without an upper limit: stamps follow the node's clock, which can be ahead of ours.
    offset = 0
    while True:
        page = await sender.ask(
            lambda offset=offset: sink.find(
                after=since, before=None, newest_first=True, offset=offset
            )
        )
        newest += page.logs
        if page.is_last or (len(newest) >= ENOUGH and not _is_coarse(newest)):
            break
        offset += PAGE
    if not newest:
        return None
    if _is_coarse(newest):
        # A server that keeps no microseconds leaves us but to count.
        lines = sum(log.message.count("\n") + 1 for log in newest)
        numbering.resume_uncertainly(lines, newest[0].timestamp)
        return newest[0]
    marked = [(log.timestamp, log.message.count("\n") + 1) for log in newest[:ENOUGH]]
    return newest[0] if numbering.resume(marked) else None


def _is_coarse(logs: list[SentLog]) -> bool:
    return all(log.timestamp.microsecond % 1000 == 0 for log in logs)
