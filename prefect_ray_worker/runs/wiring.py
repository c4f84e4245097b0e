"""`services_of`: builds what the runs of one worker share."""

from functools import partial
from typing import Any

import anyio
from prefect.workers.base import BaseWorker

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.open import OpenClusters
from prefect_ray_worker.config.secrets import Delivery
from prefect_ray_worker.prefect_api.compat.workers import related_resources
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.prefect_api.logs import PrefectLogs
from prefect_ray_worker.runs.attended import Attendance
from prefect_ray_worker.runs.explain import WaitingRuns
from prefect_ray_worker.runs.lease import Lease
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.slots import DeploymentSlots
from prefect_ray_worker.runs.timing import Timing
from prefect_ray_worker.settings import RayWorkerSettings

# Prefect's client has 16 sockets; the runs' states need some.
_LOG_REQUESTS_AT_ONCE = 4
_LINKS_AT_ONCE = 2


def services_of(
    worker: BaseWorker[Any, Any, Any],
    settings: RayWorkerSettings,
    clusters: OpenClusters,
    sources: ClusterSources,
    followed: FollowedRuns,
    attendance: Attendance,
    *,
    lease: tuple[str, float],
    timing: Timing,
) -> Services:
    """Return what the runs of a worker share.

    Args:
        worker: The worker; its client is open.
        settings: Its settings.
        clusters: The open clusters.
        sources: Where clusters come from.
        followed: What this process follows.
        attendance: What is asked about all runs together.
        lease: Names this process, and says for how many seconds a look keeps its runs its own.
        timing: Waits and intervals.
    """
    client, (instance, lease_seconds) = worker.client, lease
    flow_runs = FlowRuns(client)
    log_requests = anyio.CapacityLimiter(_LOG_REQUESTS_AT_ONCE)
    return Services(
        flow_runs=flow_runs,
        clusters=clusters,
        sources=sources,
        cancelling=attendance.cancelling,
        settled=attendance.settled,
        unsubmitted=attendance.unsubmitted,
        waiting=WaitingRuns(flow_runs, timing),
        slots=DeploymentSlots.of(flow_runs, client, interval=timing.slot_interval),
        lease=Lease(instance, flow_runs, followed, seconds=lease_seconds),
        delivery=Delivery(settings.node_secrets, settings.send_secrets),
        ship_driver=settings.ship_driver,
        unreachable_limit=settings.unreachable_limit_seconds,
        logs_of=lambda run_id: PrefectLogs(worker.client, run_id, log_requests),
        logger_of=worker.get_flow_run_logger,
        related=partial(related_resources, worker),
        links=anyio.CapacityLimiter(_LINKS_AT_ONCE),
        in_background=followed.in_background,
        timing=timing,
    )
