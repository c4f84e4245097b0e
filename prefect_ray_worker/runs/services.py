"""`Services`: what all runs of one worker share. `Lease`: which attempts are still its own."""

import math
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import anyio
from prefect.client.schemas.objects import FlowRun
from prefect.events import RelatedResource

from prefect_ray_worker.clusters.open import OpenClusters
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.secrets import Delivery
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.prefect_api.logs import LogSink
from prefect_ray_worker.runs.explain import WaitingRuns
from prefect_ray_worker.runs.recovery.labels import owner_in
from prefect_ray_worker.runs.slots import DeploymentSlots
from prefect_ray_worker.runs.stop import AttendedRuns
from prefect_ray_worker.runs.timing import Timing
from prefect_ray_worker.shared.ids import attempt_in

InBackground = Callable[[Callable[[], Awaitable[object]], str], None]


class Lease:
    """Tells whether this process still owns an attempt that it follows.

    Recovery renews the lease with each look at the pool's runs. While it is fresh, an answer
    costs nothing. A process that was frozen has no fresh lease: it asks Prefect, because another
    worker may have taken over its runs.

    Args:
        instance: This process, as the runs' owner labels name it.
        flow_runs: The Prefect side.
        followed: The submission ids that this process submits or follows.
        seconds: How long a renewal lasts.
    """

    def __init__(
        self, instance: str, flow_runs: FlowRuns, followed: Container[str], *, seconds: float
    ) -> None:
        self._instance = instance
        self._flow_runs = flow_runs
        self._followed = followed
        self._seconds = seconds
        self._renewed_at = -math.inf

    def renew(self, looked_at: float) -> None:
        """Extend the lease: this process has dropped the runs that other workers own.

        Args:
            looked_at: When the look at the pool's runs began, by `anyio.current_time`.
        """
        self._renewed_at = looked_at

    async def holds(self, flow_run_id: UUID, submission_id: str) -> bool:
        """Return whether an attempt is still this process's own to act on.

        Ask this before anything that two workers must not both do.

        Args:
            flow_run_id: The run.
            submission_id: The job of the attempt.
        """
        if anyio.current_time() - self._renewed_at < self._seconds:
            return submission_id in self._followed
        run = await self._flow_runs.read(flow_run_id)
        if run is None:
            return False
        owner = owner_in(run.labels, attempt_in(submission_id))
        return owner.instance in (None, self._instance)


@dataclass(frozen=True)
class Services:
    """What all runs of one worker share.

    Attributes:
        flow_runs: The Prefect side.
        clusters: The open clusters.
        cancelling: Which runs are being cancelled.
        settled_outside: Which runs have ended, or were scheduled again, by another hand than their
            driver's or ours.
        waiting: Explains why PENDING jobs have not started.
        slots: Keeps the slots of deployments' concurrency limits while jobs start.
        lease: Which attempts are still this worker's.
        delivery: How secrets reach the jobs.
        ship_driver: Whether to bring our package to the cluster.
        unreachable_limit: Seconds for which a cluster may be silent.
        logs_of: Returns the logs of a flow run in Prefect.
        logger_of: Returns a logger that logs to a flow run.
        related: Returns what the events of a run are related to.
        links: Limits how many links are written at once, so that states come first.
        in_background: Starts a named task whose failure ends nothing else.
        timing: Waits and intervals.
    """

    flow_runs: FlowRuns
    clusters: OpenClusters
    cancelling: AttendedRuns
    settled_outside: AttendedRuns
    waiting: WaitingRuns
    slots: DeploymentSlots
    lease: Lease
    delivery: Delivery
    ship_driver: bool
    unreachable_limit: float
    logs_of: Callable[[UUID], LogSink]
    logger_of: Callable[[FlowRun], "Logger | LoggerAdapter[Any]"]
    related: Callable[[RayJobConfiguration], Sequence[RelatedResource]]
    links: anyio.CapacityLimiter
    in_background: InBackground
    timing: Timing
