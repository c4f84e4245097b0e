"""`Attempt`: what is known of one attempt at a run before anything is done about it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import anyio
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events import RelatedResource

from prefect_ray_worker.clusters.open import OpenCluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.secrets import Delivery
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.prefect_api.logs import LogSink
from prefect_ray_worker.ray_api.resources import asked_for
from prefect_ray_worker.runs.cancelling import CancellingRuns
from prefect_ray_worker.runs.explain import WaitingRuns
from prefect_ray_worker.runs.judge import Limits
from prefect_ray_worker.shared.ids import STARTING, present_claim, submission_id
from prefect_ray_worker.shared.resources import Asked

Related = Callable[[RayJobConfiguration], Sequence[RelatedResource]]
InBackground = Callable[[Callable[[], Awaitable[object]], str], None]


@dataclass(frozen=True)
class Surroundings:
    """What the attempts of a worker share.

    Attributes:
        flow_runs: The Prefect side.
        cancelling: Which runs are being cancelled.
        unreachable_limit: Seconds for which a cluster may be silent.
        ship_driver: Whether to bring our package to the cluster.
        delivery: How secrets reach the jobs.
        logs_of: Returns the logs of a flow run.
        owns: Says of a run and a job whether this process still looks after them.
        related: Returns what the events of a run are related to.
        links: Lets so many artifacts through at once, behind what matters more.
        waiting: Tells what the runs wait for whose jobs are PENDING.
        in_background: Starts a task under a name; its trouble ends nothing else.
    """

    flow_runs: FlowRuns
    cancelling: CancellingRuns
    unreachable_limit: float
    ship_driver: bool
    delivery: Delivery
    logs_of: Callable[[UUID], LogSink]
    owns: Callable[[UUID, str], Awaitable[bool]]
    related: Related
    links: anyio.CapacityLimiter
    waiting: WaitingRuns
    in_background: InBackground


@dataclass(frozen=True)
class Attempt:
    """One attempt at one flow run, named by the claim that began it.

    Attributes:
        flow_run: The run.
        history: The run's states, in order, as they were when the attempt was looked at.
        configuration: Prepared for the run.
        cluster: Where its job is, or goes.
        around: What the worker's attempts share.
        log: Logs to the flow run.
    """

    flow_run: FlowRun
    history: Sequence[State[Any]]
    configuration: RayJobConfiguration
    cluster: OpenCluster
    around: Surroundings
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
    def job_id(self) -> str:
        """The submission id of the attempt's job."""
        return submission_id(self.run_id, self.claim_id)

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
    def dashboard_page(self) -> str:
        """The job's page in the Ray dashboard, for people."""
        dashboard = self.configuration.dashboard_of(self.address)
        return f"{dashboard}/#/jobs/{self.job_id}"

    @property
    def limits(self) -> Limits:
        """How long the attempt may take for what."""
        return Limits(
            start=self.configuration.start_timeout_seconds,
            run=self.configuration.run_timeout_seconds,
            stop_grace=self.configuration.stop_grace_seconds,
            unreachable=self.around.unreachable_limit,
        )

    @property
    def claimed_at(self) -> datetime | None:
        """When the attempt began, on the clock of the Prefect server."""
        return next((s.timestamp for s in self.history if s.id == self.claim_id), None)

    @property
    def started_at(self) -> datetime | None:
        """When its driver first spoke to Prefect, which is as near as it gets to RUNNING.

        Ray keeps no time at which a job began to run (2.60).
        """
        began = self.claimed_at
        spoke = [
            s.timestamp
            for s in self.history
            if (s.type == StateType.RUNNING or s.name == STARTING)
            and (began is None or s.timestamp > began)
        ]
        return min(spoke, default=None)
