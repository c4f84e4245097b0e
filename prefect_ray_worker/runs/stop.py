"""Stop a job, confirm that it ended, and track which runs are being cancelled.

Ray's acceptance of a stop request does not mean that the job has ended.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from enum import Enum
from uuid import UUID

import anyio
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound

from prefect_ray_worker import metrics
from prefect_ray_worker.errors import JobNotFound, JobsApiError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.runs.timing import DEFAULT_TIMING, Timing
from prefect_ray_worker.shared.backoff import Backoff, jittered
from prefect_ray_worker.shared.ids import InfrastructurePid, is_job_of, run_in

# A burst of events makes few requests.
_GAP_SECONDS = 0.25

_log = logging.getLogger("prefect.workers.ray.cancelling")


class Stopping(Enum):
    """The result of an attempt to stop a job."""

    ENDED = "ended"
    """The job has a terminal status."""

    GONE = "gone"
    """A reachable cluster has no such job."""

    QUEUED = "queued"
    """The job is PENDING. Ray keeps the request and ends the job as soon as it starts."""

    UNCONFIRMED = "unconfirmed"
    """The job was asked to stop but still runs."""

    FOREIGN = "foreign"
    """The job with this id belongs to something else. It was not asked to stop."""

    UNREACHABLE = "unreachable"
    """The cluster does not answer, so the job's status is unknown."""


async def stop_and_confirm(
    client: JobsClient,
    submission_id: str,
    *,
    grace_seconds: float,
    timing: Timing = DEFAULT_TIMING,
    of_run: UUID | None = None,
) -> Stopping:
    """Stop a job and wait until it has ended. Repeated calls are safe.

    Ray passes a stop request to the job's supervisor. A PENDING job has no supervisor yet, so the
    request waits for one, and no API call ends the job sooner (Ray 2.60).

    Args:
        client: The cluster.
        submission_id: The job.
        grace_seconds: How long Ray itself waits between SIGTERM and SIGKILL.
        timing: How long to wait for confirmation.
        of_run: The flow run that the job's record must name; None accepts any job.

    Returns:
        The result after at most `grace_seconds` plus `timing.stop_confirm` (15 s).
    """
    stopping = await _stop_and_look(client, submission_id, grace_seconds, timing, of_run)
    metrics.STOPS.labels(stopping.value).inc()
    return stopping


async def _stop_and_look(
    client: JobsClient,
    submission_id: str,
    grace_seconds: float,
    timing: Timing,
    of_run: UUID | None,
) -> Stopping:
    backoff = Backoff(initial=timing.stop_poll)
    began = anyio.current_time()
    result = Stopping.UNREACHABLE
    asked = False
    while anyio.current_time() < began + grace_seconds + timing.stop_confirm:
        try:
            job = await client.get(submission_id)
            if of_run is not None and not is_job_of(of_run, job.metadata):
                return Stopping.FOREIGN
            if job.is_terminal:
                return Stopping.ENDED
            if not asked:
                asked = await client.stop(submission_id)
            result = Stopping.UNCONFIRMED
            if job.status == JobStatus.PENDING:
                result = Stopping.QUEUED
                if asked and anyio.current_time() > began + timing.stop_queued:
                    return result
            backoff.reset()
            await anyio.sleep(timing.stop_poll)
        except JobNotFound:
            return Stopping.GONE
        except JobsApiError:
            result = Stopping.UNREACHABLE
            await anyio.sleep(backoff.next())
    return result


def pid_of_job(infrastructure_pid: str, labels: Mapping[str, str]) -> InfrastructurePid:
    """Parse a run's infrastructure pid and check that it names a job of that run.

    Args:
        infrastructure_pid: The pid recorded on the run.
        labels: Labels from the run's configuration.

    Raises:
        InfrastructureNotAvailable: The pid belongs to another worker type or another run.
    """
    try:
        pid = InfrastructurePid.parse(infrastructure_pid)
    except ValueError as exc:
        raise InfrastructureNotAvailable(f"{exc}; it belongs to another worker type.") from None
    run_id = run_in(pid.submission_id)
    if run_id is None or str(run_id) != labels.get("prefect.io/flow-run-id", str(run_id)):
        # Anyone with permission to update the run can set its pid to another run's job.
        raise InfrastructureNotAvailable(f"{infrastructure_pid!r} is not a job of this run.")
    return pid


async def kill_job(
    client: JobsClient, pid: InfrastructurePid, *, grace_seconds: float, timing: Timing
) -> str:
    """Stop a job for Prefect's `kill_infrastructure`; return a message with the result.

    Raises:
        InfrastructureNotFound: A reachable cluster does not have the job.
        InfrastructureNotAvailable: The cluster does not answer, the job did not end in time, or
            its record does not name the run.
    """
    job_id = pid.submission_id
    stopping = await stop_and_confirm(
        client, job_id, grace_seconds=grace_seconds, timing=timing, of_run=run_in(job_id)
    )
    match stopping:
        case Stopping.FOREIGN:
            raise InfrastructureNotAvailable(
                f"The record of the Ray Job {job_id} does not name this run."
            )
        case Stopping.GONE:
            raise InfrastructureNotFound(f"{pid.cluster} has no job {job_id}.")
        case Stopping.UNREACHABLE | Stopping.UNCONFIRMED:
            raise InfrastructureNotAvailable(
                f"The Ray Job {job_id} could not be stopped: {stopping.value}."
            )
        case Stopping.ENDED | Stopping.QUEUED:
            return f"Ray Job {job_id}: stop {stopping.value}."


class AttendedRuns:
    """Tracks which attended runs match a query, for example those being cancelled.

    One request every few seconds covers all attended runs. No request is sent while no run is
    attended.

    Args:
        ask: Returns the runs that match. It need not report runs that are not attended.
        interval: Seconds between requests.
        what: The query in words, for the worker's log: "which runs are being cancelled".
    """

    def __init__(
        self,
        ask: Callable[[Collection[UUID]], Awaitable[set[UUID]]],
        *,
        interval: float,
        what: str,
    ) -> None:
        self._ask = ask
        self._interval = interval
        self._what = what
        # Each run and when its attendance began. Two attempts of one run can overlap.
        self._attended: list[tuple[UUID, float]] = []
        self._found: set[UUID] = set()
        self._wake = anyio.Event()
        self._hurry = anyio.Event()

    def __contains__(self, flow_run_id: object) -> bool:
        return flow_run_id in self._found

    def look_now(self) -> None:
        """Send the next request at once, for example because an event says that a run changed."""
        self._hurry.set()

    @contextmanager
    def attended(self, flow_run_id: UUID) -> Generator[None, None, None]:
        """Include a run in the requests while the context is open."""
        attention = (flow_run_id, anyio.current_time())
        self._attended.append(attention)
        self._wake.set()
        try:
            yield
        finally:
            self._attended.remove(attention)
            self._found.discard(flow_run_id)

    async def run(self) -> None:
        """Send the requests forever. Run this in a background task."""
        backoff = Backoff(initial=self._interval)
        while True:
            if not self._attended:
                await self._wake.wait()
            self._wake = anyio.Event()
            self._hurry = anyio.Event()
            began = anyio.current_time()
            try:
                found = await self._ask({run for run, _ in self._attended})
                # A cancelled run can be run again, so ignore answers from before this attempt.
                since = dict(self._attended)
                self._found = {run for run in found if since.get(run, math.inf) <= began}
                backoff.reset()
                await anyio.sleep(min(_GAP_SECONDS, self._interval))
                with anyio.move_on_after(jittered(self._interval)):
                    await self._hurry.wait()
            except Exception as exc:  # noqa: BLE001 (the loop must survive any API error)
                _log.warning("Cannot ask Prefect %s: %s", self._what, exc)
                await anyio.sleep(backoff.next())
