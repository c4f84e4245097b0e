"""Stop a job and confirm that it ended: a request accepted is not a request done."""

from enum import Enum

import anyio

from prefect_ray_worker import metrics
from prefect_ray_worker.errors import JobNotFound, JobsApiError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.shared.backoff import Backoff

_POLL_SECONDS = 0.5
# After Ray's own wait between SIGTERM and SIGKILL it takes this long, at most, to say STOPPED.
_CONFIRM_SECONDS = 15.0
_QUEUED_SECONDS = 3.0


class Stopping(Enum):
    """How far an attempt to stop a job has come."""

    ENDED = "ended"
    """The job has a terminal status."""

    GONE = "gone"
    """A reachable cluster has no such job."""

    QUEUED = "queued"
    """The job is PENDING and Ray keeps the request until it starts; it then ends at once."""

    UNCONFIRMED = "unconfirmed"
    """The job was asked to stop and still runs."""

    UNREACHABLE = "unreachable"
    """The cluster does not answer: nothing is known."""


async def stop_and_confirm(
    client: JobsClient, submission_id: str, *, grace_seconds: float
) -> Stopping:
    """Stop a job and wait until it has ended; calling it again does no harm.

    Ray passes a stop to a job's supervisor. While a job is PENDING there is none, so the
    request waits for it, and no call of the API ends the job sooner (Ray 2.60).

    Args:
        client: The cluster.
        submission_id: The job.
        grace_seconds: How long Ray itself waits between SIGTERM and SIGKILL.

    Returns:
        How far it came within `grace_seconds` and 15 s more.
    """
    stopping = await _stop_and_look(client, submission_id, grace_seconds)
    metrics.STOPS.labels(stopping.value).inc()
    return stopping


async def _stop_and_look(client: JobsClient, submission_id: str, grace_seconds: float) -> Stopping:
    backoff = Backoff(initial=_POLL_SECONDS)
    began = anyio.current_time()
    result = Stopping.UNREACHABLE
    asked = False
    while anyio.current_time() < began + grace_seconds + _CONFIRM_SECONDS:
        try:
            job = await client.get(submission_id)
            if job.is_terminal:
                return Stopping.ENDED
            if not asked:
                asked = await client.stop(submission_id)
            result = Stopping.UNCONFIRMED
            if job.status == JobStatus.PENDING:
                result = Stopping.QUEUED
                if asked and anyio.current_time() > began + _QUEUED_SECONDS:
                    return result
            backoff.reset()
            await anyio.sleep(_POLL_SECONDS)
        except JobNotFound:
            return Stopping.GONE
        except JobsApiError:
            result = Stopping.UNREACHABLE
            await anyio.sleep(backoff.next())
    return result
