"""`Services`: what all runs of one worker share."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import anyio
from prefect.client.schemas.objects import FlowRun
from prefect.events import RelatedResource
from prefect.events.related import object_as_related_resource

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.open import OpenClusters
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.secrets import Delivery
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.prefect_api.logs import LogSink
from prefect_ray_worker.runs.attended import AttendedRuns, SettledRuns
from prefect_ray_worker.runs.explain import WaitingRuns
from prefect_ray_worker.runs.lease import Lease
from prefect_ray_worker.runs.slots import DeploymentSlots
from prefect_ray_worker.runs.timing import Timing

_FLOW_RUN = "flow-run"

InBackground = Callable[[Callable[[], Awaitable[object]], str], None]


@dataclass(frozen=True)
class Services:
    """What all runs of one worker share.

    Attributes:
        flow_runs: The Prefect side.
        clusters: The open clusters.
        sources: Where clusters come from.
        cancelling: Which runs are being cancelled.
        settled: Which runs have ended, or were scheduled again.
        unsubmitted: Which runs do not wait for their job any more, being settled or deleted.
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
    sources: ClusterSources
    cancelling: AttendedRuns
    settled: SettledRuns
    unsubmitted: AttendedRuns
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

    def related_to(
        self, flow_run: FlowRun, configuration: RayJobConfiguration
    ) -> list[RelatedResource]:
        """Return what the events of a run's job, or of its cluster, are related to."""
        related = list(self.related(configuration))
        if not any(resource.role == _FLOW_RUN for resource in related):
            # The configuration of an adopted run could no longer be read.
            related.append(object_as_related_resource(_FLOW_RUN, _FLOW_RUN, flow_run))
        return related
