"""Stop a job, and confirm that it ended.

Ray's acceptance of a stop request does not mean that the job has ended.
"""

import logging
from collections.abc import Mapping
from enum import Enum
from uuid import UUID

import anyio
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound

from prefect_ray_worker import metrics
from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.open import OpenClusters
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import (
    ClusterSourceUnclear,
    JobNotFound,
    JobsApiError,
    KubernetesError,
)
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.runs.recovery.labels import recorded_pid
from prefect_ray_worker.runs.timing import DEFAULT_TIMING, Timing
from prefect_ray_worker.shared.backoff import Backoff
from prefect_ray_worker.shared.ids import ClusterRef, InfrastructurePid, is_job_of, run_in

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


async def cluster_of_pid(
    sources: ClusterSources,
    flow_runs: FlowRuns,
    pid: InfrastructurePid,
    configuration: RayJobConfiguration,
) -> Cluster:
    """Return the cluster that a run's infrastructure pid names.

    Args:
        sources: Where clusters come from.
        flow_runs: Asked where the cluster was made if it is not where this worker looks.
        pid: The pid.
        configuration: Of the run.

    Raises:
        InfrastructureNotFound: The cluster was deleted, and the job with it.
        InfrastructureNotAvailable: The run is configured for another cluster, or nothing says
            whether the cluster is there.
    """
    plan = await sources.plan(configuration, pid.submission_id, pid.cluster)
    try:
        cluster = await sources.find(configuration, pid.submission_id, pid.cluster)
    except (ClusterSourceUnclear, KubernetesError) as exc:
        raise InfrastructureNotAvailable(str(exc)) from exc
    configured = cluster.ref if cluster else "no running cluster"
    if cluster is None and plan.names(pid.cluster):
        if plan.decides(await _as_recorded(flow_runs, pid)):
            raise InfrastructureNotFound(f"The cluster {pid.cluster} is gone, and its job with it.")
        configured = "another place of that kind"
    if cluster is None or cluster.ref != pid.cluster:
        raise InfrastructureNotAvailable(
            f"The job is on the Ray cluster {pid.cluster}, and this worker is configured for "
            f"{configured}."
        )
    return cluster


async def _as_recorded(flow_runs: FlowRuns, pid: InfrastructurePid) -> ClusterRef:
    """Return the cluster of a pid, with its home if the run's labels say so."""
    run_id = run_in(pid.submission_id)
    run = None if run_id is None else await flow_runs.read(run_id)
    recorded = run and recorded_pid(str(pid), run.labels, pid.submission_id)
    return recorded.cluster if recorded else pid.cluster


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


async def kill_by_pid(
    infrastructure_pid: str,
    configuration: RayJobConfiguration,
    sources: ClusterSources,
    clusters: OpenClusters,
    flow_runs: FlowRuns,
    *,
    grace: float,
    timing: Timing,
) -> str:
    """Find the job behind an infrastructure pid, and stop it; see `kill_job`."""
    pid = pid_of_job(infrastructure_pid, configuration.labels)
    cluster = await cluster_of_pid(sources, flow_runs, pid, configuration)
    opened = await clusters.get(cluster)
    seconds = max(grace, configuration.stop_grace_seconds)
    with opened.use.going_on():
        return await kill_job(opened.client, pid, grace_seconds=seconds, timing=timing)
