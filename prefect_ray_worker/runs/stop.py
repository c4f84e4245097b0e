"""Stop a job and confirm that it ended, and know which runs want to be stopped.

A request accepted is not a request done.
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

_log = logging.getLogger("prefect.workers.ray.cancelling")


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

    FOREIGN = "foreign"
    """The cluster has a job of that id, and it belongs to something else. It was not asked."""

    UNREACHABLE = "unreachable"
    """The cluster does not answer: nothing is known."""


async def stop_and_confirm(
    client: JobsClient,
    submission_id: str,
    *,
    grace_seconds: float,
    timing: Timing = DEFAULT_TIMING,
    of_run: UUID | None = None,
) -> Stopping:
    """Stop a job and wait until it has ended; calling it again does no harm.

    Ray passes a stop to a job's supervisor. While a job is PENDING there is none, so the
    request waits for it, and no call of the API ends the job sooner (Ray 2.60).

    Args:
        client: The cluster.
        submission_id: The job.
        grace_seconds: How long Ray itself waits between SIGTERM and SIGKILL.
        timing: How long to wait for the confirmation.
        of_run: The flow run whose job it must be, by its record; None for any.

    Returns:
        How far it came within `grace_seconds` and `timing.stop_confirm` (15 s) more.
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
    """Read the infrastructure pid of a run, and check that it names a job of that run.

    Args:
        infrastructure_pid: As it stands on the run.
        labels: Of the run's configuration.

    Raises:
        InfrastructureNotAvailable: It belongs to another worker type, or to another run.
    """
    try:
        pid = InfrastructurePid.parse(infrastructure_pid)
    except ValueError as exc:
        raise InfrastructureNotAvailable(f"{exc}; it belongs to another worker type.") from None
    run_id = run_in(pid.submission_id)
    if run_id is None or str(run_id) != labels.get("prefect.io/flow-run-id", str(run_id)):
        # Anyone who may update the run can write its pid, and name the job of another one.
        raise InfrastructureNotAvailable(f"{infrastructure_pid!r} is not a job of this run.")
    return pid


async def kill_job(
    client: JobsClient, pid: InfrastructurePid, *, grace_seconds: float, timing: Timing
) -> str:
    """Stop a job as Prefect's `kill_infrastructure` asks for it; return what was done.

    Raises:
        InfrastructureNotFound: A reachable cluster does not have the job.
        InfrastructureNotAvailable: The cluster does not answer, the job has not ended in time, or
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
    """Knows which of the attended runs are being cancelled, for example.

    One request every few seconds asks for all of them; none while no run is attended.

    Args:
        ask: Returns which runs it is true of; it may leave out runs that are not attended.
        interval: Seconds between two questions.
        what: What is asked, for the worker's log: "which runs are being cancelled".
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
        # Runs, and when attention to them began; two attempts at one run may overlap.
        self._attended: list[tuple[UUID, float]] = []
        self._found: set[UUID] = set()
        self._wake = anyio.Event()

    def __contains__(self, flow_run_id: object) -> bool:
        return flow_run_id in self._found

    @contextmanager
    def attended(self, flow_run_id: UUID) -> Generator[None, None, None]:
        """Keep asking about a run for as long as the context is open."""
        attention = (flow_run_id, anyio.current_time())
        self._attended.append(attention)
        self._wake.set()
        try:
            yield
        finally:
            self._attended.remove(attention)
            self._found.discard(flow_run_id)

    async def run(self) -> None:
        """Ask, for ever. Run this in a background task."""
        backoff = Backoff(initial=self._interval)
        while True:
            if not self._attended:
                await self._wake.wait()
            self._wake = anyio.Event()
            began = anyio.current_time()
            try:
                found = await self._ask({run for run, _ in self._attended})
                # An older answer is about an earlier attempt: a cancelled run can be run again.
                since = dict(self._attended)
                self._found = {run for run in found if since.get(run, math.inf) <= began}
                backoff.reset()
                await anyio.sleep(jittered(self._interval))
            except Exception as exc:  # noqa: BLE001 (the asking must survive any API trouble)
                _log.warning("Cannot ask Prefect %s: %s", self._what, exc)
                await anyio.sleep(backoff.next())
