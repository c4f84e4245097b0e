"""`RunAttempt`: the facts of one attempt at a flow run."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from logging import Logger, LoggerAdapter
from typing import Any, Protocol
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType

from prefect_ray_worker.clusters.open import OpenCluster
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.prefect_api.active_runs import is_cancelling_timeout
from prefect_ray_worker.prefect_api.flow_runs import type_of_state
from prefect_ray_worker.ray_api.resources import asked_for
from prefect_ray_worker.runs.judge import Limits
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.shared.ids import (
    STARTING,
    InfrastructurePid,
    attempt_number,
    is_claim,
    present_claim,
    submission_id,
)
from prefect_ray_worker.shared.resources import Asked


class ConfigurationOf(Protocol):
    """Builds the prepared configuration of a run, as for its submission."""

    async def __call__(self, flow_run: FlowRun) -> RayJobConfiguration:
        """Return the configuration, or raise if it cannot be used, or Prefect does not answer.

        `is_passing_error` tells these apart.
        """
        ...


@dataclass(frozen=True)
class LeftAttempt:
    """An attempt that a process that is being stopped leaves to other workers.

    Attributes:
        run_id: The flow run.
        job_id: The submission id of the attempt's job.
        host: The only machine that can reach its cluster; None if others can, or there is none yet.
    """

    run_id: UUID
    job_id: str
    host: str | None = None


@dataclass(frozen=True)
class OrphanedRun:
    """A run to adopt.

    Attributes:
        flow_run: The run, just read.
        job_id: The submission id of its present attempt.
        pid: Where that attempt's job is, if a worker recorded it.
    """

    flow_run: FlowRun
    job_id: str
    pid: InfrastructurePid | None


@dataclass(frozen=True)
class RunAttempt:
    """One attempt at one flow run, named by the claim that began it.

    Attributes:
        flow_run: The run.
        history: The run's states, oldest first, as they were when the attempt was read.
        configuration: Prepared for the run.
        cluster: Where its job is, or goes.
        limits: How long the attempt may take for what.
        log: Logs to the flow run.
    """

    flow_run: FlowRun
    history: Sequence[State[Any]]
    configuration: RayJobConfiguration
    cluster: OpenCluster
    limits: Limits
    log: "Logger | LoggerAdapter[Any]"

    @property
    def run_id(self) -> UUID:
        """The flow run's id."""
        return self.flow_run.id

    @property
    def claim_id(self) -> UUID:
        """Id of the Pending state that began the attempt."""
        return present_claim(self.history) or self.flow_run.id

    @property
    def number(self) -> int:
        """Which attempt at the run it is, counted from 1."""
        return attempt_number(self.history, self.claim_id)

    @property
    def job_id(self) -> str:
        """The submission id of the attempt's job."""
        return submission_id(self.run_id, self.claim_id)

    @property
    def left(self) -> LeftAttempt:
        """What other workers need to go on with it."""
        return LeftAttempt(self.run_id, self.job_id, self.cluster.reachable_from)

    @property
    def address(self) -> str:
        """The cluster's address."""
        return self.cluster.client.connection.address

    @property
    def asked(self) -> Asked:
        """What its job asks for.

        Raises:
            InvalidConfiguration: The configuration of an adopted run makes no job any more.
        """
        return asked_for(self.configuration.submission_request(self.job_id))

    @property
    def dashboard_page(self) -> str | None:
        """The job's page in the Ray dashboard, for people; None if only the worker reaches it."""
        dashboard = self.cluster.dashboard
        if not self.cluster.is_on_demand:
            dashboard = self.configuration.dashboard_of(self.address)
        return None if dashboard is None else f"{dashboard}/#/jobs/{self.job_id}"

    @property
    def claimed_at(self) -> datetime | None:
        """When the attempt began, on the clock of the Prefect server."""
        return next((s.timestamp for s in self.history if s.id == self.claim_id), None)

    @property
    def lease_id(self) -> UUID | None:
        """The lease of its slot of the deployment's concurrency limit, as the claim got it."""
        return slot_lease_in(self.history)

    @property
    def started_at(self) -> datetime | None:
        """When the attempt's driver first reported to Prefect.

        That is as close as we get to RUNNING: Ray keeps no time at which a job began to run (2.60).
        """
        return started_in(self.history)

    @property
    def cancelling_at(self) -> datetime | None:
        """When the run became Cancelling; None if it has left that, except by a server timeout."""
        states = list(self.history)
        if states and is_cancelling_timeout(states[-1].type, states[-1].message):
            states.pop()
        is_cancelling = bool(states) and states[-1].type == StateType.CANCELLING
        return states[-1].timestamp if is_cancelling else None


def started_in(history: Sequence[State[Any]]) -> datetime | None:
    """Return when the process of the present attempt first reported to Prefect; None if never."""
    # A run that was started by hand can have no claim: `prefect flow-run execute` proposes Running
    # straight from Scheduled (3.8.8).
    claim_id = present_claim(filter(is_claim, history))
    began = next((s.timestamp for s in history if s.id == claim_id), None)
    spoke = [
        s.timestamp
        for s in history
        if (s.type == StateType.RUNNING or s.name == STARTING)
        and (began is None or s.timestamp > began)
    ]
    return min(spoke, default=None)


def slot_lease_in(history: Sequence[State[Any]]) -> UUID | None:
    """Return the lease of the present attempt's slot of its deployment's concurrency limit."""
    claim_id = present_claim(history)
    claim = next((state for state in history if state.id == claim_id), None)
    return claim.state_details.deployment_concurrency_lease_id if claim is not None else None


async def waiting_slot_lease(services: Services, found: OrphanedRun) -> UUID | None:
    """Return the lease of the slot of an attempt that waits for its job; None if it has none.

    Args:
        services: What the worker's runs share.
        found: The attempt.
    """
    run = found.flow_run
    if type_of_state(run) != StateType.PENDING:
        return None  # the flow engine renews it, or the run has ended
    history = await services.flow_runs.states(run.id)
    is_present = submission_id(run.id, present_claim(history) or run.id) == found.job_id
    return slot_lease_in(history) if is_present else None


async def present_attempt(
    services: Services,
    flow_run: FlowRun,
    configuration: RayJobConfiguration,
    cluster: Cluster,
    history: Sequence[State[Any]] | None = None,
) -> RunAttempt:
    """Return the present attempt at a run.

    Args:
        services: What the worker's runs share.
        flow_run: The run.
        configuration: Prepared for it.
        cluster: The cluster that has its job, or gets it.
        history: The run's states; read from Prefect if not given.
    """
    return RunAttempt(
        flow_run=flow_run,
        history=history or await services.flow_runs.states(flow_run.id),
        configuration=configuration,
        cluster=await services.clusters.get(cluster),
        limits=Limits(
            start=configuration.start_timeout_seconds,
            run=configuration.run_timeout_seconds,
            stop_grace=configuration.stop_grace_seconds,
            left_behind=services.timing.left_behind,
            unreachable=services.unreachable_limit,
            quiet=services.timing.quiet_after,
        ),
        log=services.logger_of(flow_run),
    )
