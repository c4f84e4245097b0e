"""`begin`: brings a flow run to the point where Ray has its job."""

from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.clusters.existing import warn_of_local_api
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.runs.provide import Own, Provision, settled_unsent
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.run import present_attempt, slot_lease_in
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.submit import Submitter
from prefect_ray_worker.shared.ids import InfrastructurePid, present_claim, submission_id


async def begin(
    services: Services,
    followed: FollowedRuns,
    own: Own,
    flow_run: FlowRun,
    configuration: RayJobConfiguration,
    *,
    may_start: bool,
) -> tuple[Follower, InfrastructurePid] | None:
    """Submit the run's job to a cluster that takes it.

    Args:
        services: What the worker's runs share.
        followed: Told what this process has in hand.
        own: Writes on the run that this process owns the attempt.
        flow_run: The run.
        configuration: Prepared for it.
        may_start: Whether this process may start a Ray on its machine.

    Returns:
        What follows the job, and its pid; None if the run was settled before there was a cluster.

    Raises:
        RayWorkerError: Before the job was accepted.
    """
    logger = services.logger_of(flow_run)
    with followed.in_hand(flow_run.id):
        history = await services.flow_runs.states(flow_run.id)
        if await settled_unsent(services, flow_run, history):
            return None
        job_id = submission_id(flow_run.id, present_claim(history) or flow_run.id)
        lease_id = slot_lease_in(history)
        with followed.submitting(job_id), services.slots.kept(lease_id, flow_run, logger):
            provision = Provision(services, own, flow_run, configuration, job_id)
            cluster = await provision.cluster(may_start=may_start)
            if cluster is None:
                return None
            warn_of_local_api(cluster, PREFECT_API_URL.value(), logger.warning)
            attempt = await present_attempt(services, flow_run, configuration, cluster, history)
            submitter = Submitter(services, attempt)
            with followed.submitting(job_id, attempt):
                pid = await submitter.submit()
    return Follower(services, attempt, submitter), pid
