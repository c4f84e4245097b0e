"""`begin`: brings a flow run to the point where Ray has its job."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.clusters.existing import warn_of_local_api
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.runs.provide import Own, Provision, settled_unsent
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.run import present_attempt, slot_lease_in
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.submit import Submitter
from prefect_ray_worker.shared.ids import (
    InfrastructurePid,
    is_claim,
    present_claim,
    submission_id,
)

# A run that is being cancelled is submitted too: what follows its job settles it.
_UNSUBMITTED = (StateType.PENDING, StateType.CANCELLING)
_GIVEN_UP = (
    "The flow run %s is not submitted by this worker: since it was claimed, it has ended, was "
    "rescheduled, or was submitted by another worker."
)

_log = logging.getLogger("prefect.workers.ray.begin")


async def begin(
    services: Services,
    followed: FollowedRuns,
    own: Own,
    flow_run: FlowRun,
    configuration: RayJobConfiguration,
    *,
    may_start: bool,
    show: Callable[[FlowRun], Awaitable[None]] | None = None,
) -> tuple[Follower, InfrastructurePid] | None:
    """Submit the run's job to a cluster that takes it.

    Args:
        services: What the worker's runs share.
        followed: Told what this process has in hand.
        own: Writes on the run that this process owns the attempt.
        flow_run: The run.
        configuration: Prepared for it.
        may_start: Whether this process may start a Ray on its machine.
        show: Puts a run that was just claimed into the state Submitting.

    Returns:
        What follows the job, and its pid; None if the run was settled before there was a cluster,
        or is not this process's any more.

    Raises:
        RayWorkerError: Before the job was accepted.
    """
    logger = services.logger_of(flow_run)
    with followed.in_hand(flow_run.id):
        history = await services.flow_runs.states(flow_run.id)
        claim_id = followed.claim_of(flow_run.id)
        if not is_claimed_still(flow_run, history, claim_id):
            _log.warning(_GIVEN_UP, flow_run.id)
            return None
        if claim_id is not None and (ended := replaced_end(history, claim_id)) is not None:
            _log.warning(_GIVEN_UP, flow_run.id)
            await services.flow_runs.end_again(flow_run.id, claim_id, ended)
            return None
        if show is not None and is_claim(history[-1]):
            await show(flow_run)
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


def is_claimed_still(
    flow_run: FlowRun, history: Sequence[State[Any]], claim_id: UUID | None = None
) -> bool:
    """Return whether a run still waits for the submission that a worker has claimed it for.

    Minutes can pass after the claim if the Prefect API is away. Meanwhile the run can be settled
    or rescheduled, and other workers can have submitted it or claimed it anew.

    Args:
        flow_run: The run as it was before the claim, or with it.
        history: Its states, oldest first; none if it was deleted.
        claim_id: The claim that the server has granted; None if a caller began the attempt.
    """
    if not history:
        return False
    if claim_id is not None:
        # Any other Pending state was set by a worker, or a driver, that has taken the attempt over.
        last = history[-1]
        is_cancelling = last.type == StateType.CANCELLING and present_claim(history) == claim_id
        return last.id == claim_id or is_cancelling
    before = [state.timestamp for state in history if state.id == flow_run.state_id]
    claims = [s for s in history if before and s.timestamp > before[0] and is_claim(s)]
    return history[-1].type in _UNSUBMITTED and len(claims) <= 1


def replaced_end(history: Sequence[State[Any]], claim_id: UUID) -> State[Any] | None:
    """Return the final state that a claim has replaced; None if the run waited for it.

    The server grants a claim on a run that has ended, unless it is Cancelled (3.8.8). Prefect's
    client sends a claim again after a 429 or 503, and the run can have ended meanwhile.

    Args:
        history: The run's states, oldest first.
        claim_id: The claim.
    """
    ids = [state.id for state in history]
    before = history[ids.index(claim_id) - 1] if claim_id in ids[1:] else None
    return before if before is not None and before.is_final() else None
