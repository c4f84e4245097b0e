"""`RayWorker`: what Prefect calls. It wires the rooms together and translates their errors."""

import gc
import platform
import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import anyio.abc
from prefect.client.orchestration import get_client
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES,
)
from prefect.workers.base import BaseWorker, BaseWorkerResult

from prefect_ray_worker._version import documentation_url
from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.existing import warn_of_local_api
from prefect_ray_worker.clusters.open import OpenCluster, OpenClusters
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.block import LOGO_URL, RayCluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.secrets import Delivery, warnings_of
from prefect_ray_worker.config.variables import RayWorkerVariables
from prefect_ray_worker.prefect_api.active_runs import cancelling_runs, settled_outside
from prefect_ray_worker.prefect_api.answers import outlast
from prefect_ray_worker.prefect_api.compat import (
    exit_stack,
    related_resources,
    runs_task_group,
    work_queues,
    worker_logger,
)
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.prefect_api.logs import LogSink, PrefectLogs
from prefect_ray_worker.runs.explain import WaitingRuns
from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.runs.recovery.labels import Worker
from prefect_ray_worker.runs.recovery.recovery import Recovery
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.run import present_attempt
from prefect_ray_worker.runs.services import Lease, Services
from prefect_ray_worker.runs.stop import AttendedRuns, Stopping, stop_and_confirm
from prefect_ray_worker.runs.submit import Submitter
from prefect_ray_worker.runs.timing import DEFAULT_TIMING, Timing
from prefect_ray_worker.settings import RayWorkerSettings, worker_settings
from prefect_ray_worker.shared.ids import InfrastructurePid, present_claim, run_in, submission_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AsyncExitStack
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.client.schemas.responses import WorkerFlowRunResponse


# Prefect's client has 16 sockets; the runs' states need some.
_LOG_REQUESTS_AT_ONCE = 4
_LINKS_AT_ONCE = 2
_SHORTEST_INTERVAL_SECONDS = 1.0
_GIVE_UP_SECONDS = 10.0
# A worker whose looks come late may have been frozen. Others take its runs after three heartbeats,
# which are six looks.
_FRESH_LOOKS = 4


class RayWorkerResult(BaseWorkerResult):
    """The job's infrastructure pid, and always the status code 0.

    `RayWorker.run` settles the flow run itself. For any other code Prefect proposes Crashed
    (3.8.8), whatever attempt at the run goes on by then. How the run ended is in its state.
    """


class RayWorker(BaseWorker[RayJobConfiguration, RayWorkerVariables, RayWorkerResult]):
    """Runs the flow runs of a `ray` work pool as Ray Jobs.

    Started by `prefect worker start --pool <pool>`; the class is public for `worker.submit` and
    for flows that are bound to infrastructure. It never imports `ray`.

    Attributes:
        timing: Waits and intervals; tests shorten them.
    """

    type = "ray"
    job_configuration = RayJobConfiguration
    job_configuration_variables = RayWorkerVariables
    _description = (
        "Execute flow runs as Ray Jobs: the flow's driver runs inside a Ray cluster. Works well "
        "for data and ML flows that fan out over a cluster. Needs a Ray cluster, or starts one "
        "on the worker's machine."
    )
    timing: Timing = DEFAULT_TIMING
    _runs_once = False
    _display_name = "Ray"
    _documentation_url = documentation_url()
    _logo_url = LOGO_URL

    async def start(
        self,
        run_once: bool = False,
        with_healthcheck: bool = False,
        printer: "Callable[..., None]" = print,
    ) -> None:
        """Work until told to stop, as Prefect's own worker does; its loop is this process's job."""
        gc.freeze()  # what is imported stays: later collections need not look at it
        self._runs_once = run_once
        await super().start(run_once, with_healthcheck, printer)

    async def setup(self) -> None:
        """Open what the runs share, then everything of Prefect's own worker."""
        stack = exit_stack(self)
        try:
            await self._open(stack)
        except BaseException:
            # Prefect tears down only a worker whose set-up came to its end.
            await stack.__aexit__(*sys.exc_info())
            raise

    async def _open(self, stack: "AsyncExitStack") -> None:
        # Left in the opposite order: first the followers of adopted runs, then Prefect's runs,
        # which need clusters and the cancelling loop to the last, then these.
        settings = worker_settings()
        self._sources = ClusterSources.of_worker(PREFECT_HOME.value(), settings.address)
        self._followed = FollowedRuns(self._sources.count_as_ended)
        quick = min(settings.poll_interval_seconds, 2.0)
        self._cancelling = AttendedRuns(
            self._ask_cancelling, interval=quick, what="which runs are being cancelled"
        )
        self._settled_outside = AttendedRuns(
            self._ask_settled_outside, interval=2 * quick, what="which runs have been settled"
        )
        stack.push_async_callback(self._sources.release, worker_logger(self).info)
        self._clusters = await stack.enter_async_context(
            OpenClusters(interval=settings.poll_interval_seconds, resolve_anew=self._resolve_anew)
        )
        services = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(services.cancel_scope.cancel)
        services.start_soon(self._cancelling.run, name="ray-cancelling")
        services.start_soon(self._settled_outside.run, name="ray-settled-outside")
        # Once nothing follows any more: until then two workers would do the same.
        stack.push_async_callback(self._give_up_what_was_interrupted)
        await super().setup()
        if self._runs_once:
            services.start_soon(self._stay_online, name="ray-heartbeat")
        me = Worker(self.name, instance=uuid4().hex[:12], host=platform.node())
        interval = max(self.heartbeat_interval_seconds / 2, _SHORTEST_INTERVAL_SECONDS)
        self._services = self._shared_by_runs(settings, me, _FRESH_LOOKS * interval)
        self._recovery = Recovery(
            me,
            self._pool,
            self._services,
            self._sources,
            self._followed,
            self._configuration_of,
            queues=work_queues(self),
            interval=interval,
        )
        followers = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(followers.cancel_scope.cancel)
        self._followed.open(followers, logs=runs_task_group(self))
        # A worker that is being closed finishes its submissions, and follows no more runs.
        stack.callback(self._followed.close)
        for warning in warnings_of(
            send_secrets=settings.send_secrets,
            api_url=PREFECT_API_URL.value() or "",
            auto_install=PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES.value(),
        ):
            worker_logger(self).warning(warning)
        await self._sources.sweep(worker_logger(self).info)
        await self._offer_block()
        followers.start_soon(self._services.waiting.run, name="ray-waiting")
        followers.start_soon(self._recovery.run, name="ray-recovery")

    def _shared_by_runs(
        self, settings: RayWorkerSettings, me: Worker, lease_seconds: float
    ) -> Services:
        flow_runs = FlowRuns(self.client)
        return Services(
            flow_runs=flow_runs,
            clusters=self._clusters,
            cancelling=self._cancelling,
            settled_outside=self._settled_outside,
            waiting=WaitingRuns(flow_runs, self.timing),
            lease=Lease(me.instance, flow_runs, self._followed, seconds=lease_seconds),
            delivery=Delivery(settings.node_secrets, settings.send_secrets),
            ship_driver=settings.ship_driver,
            unreachable_limit=settings.unreachable_limit_seconds,
            logs_of=partial(self._logs_of, anyio.CapacityLimiter(_LOG_REQUESTS_AT_ONCE)),
            logger_of=self.get_flow_run_logger,
            related=partial(related_resources, self),
            links=anyio.CapacityLimiter(_LINKS_AT_ONCE),
            in_background=self._followed.in_background,
            timing=self.timing,
        )

    async def run(
        self,
        flow_run: "FlowRun",
        configuration: RayJobConfiguration,
        task_status: "anyio.abc.TaskStatus[Any] | None" = None,
    ) -> RayWorkerResult:
        """Submit the run's job, and return when the run is settled. Its log may take longer.

        Args:
            flow_run: The run.
            configuration: Prepared for the run.
            task_status: Told the infrastructure pid once Ray has the job.

        Raises:
            RayWorkerError: Before the job was accepted; Prefect then marks the run Crashed.
        """
        follower, pid = await self._submit(flow_run, configuration)
        if task_status is not None:
            task_status.started(str(pid))
        await self._followed.follow(follower)
        return RayWorkerResult(identifier=str(pid), status_code=0)

    async def get_and_submit_flow_runs(self) -> "list[FlowRun]":
        """Look for scheduled runs. An API that is busy or away makes the worker slower."""
        ask = super().get_and_submit_flow_runs
        return await outlast(ask, worker_logger(self), once=self._runs_once)

    async def sync_with_backend(self) -> None:
        """Tell Prefect that the worker is online, and read its pool, as patiently."""
        await outlast(super().sync_with_backend, worker_logger(self), once=self._runs_once)

    async def _submit_scheduled_flow_runs(
        self, flow_run_response: "list[WorkerFlowRunResponse]"
    ) -> "list[FlowRun]":
        """Submit scheduled runs, except those of which an attempt has not ended here.

        Prefect asks for them again. With `--limit` it would end this worker instead: it takes a
        slot in the name of the run, which has one (3.8.8).
        """
        free = [
            entry
            for entry in flow_run_response
            if not self._followed.is_busy_with(entry.flow_run.id)
        ]
        return await super()._submit_scheduled_flow_runs(free)

    async def _initiate_run(self, flow_run: "FlowRun", configuration: RayJobConfiguration) -> None:
        """Submit the run's job and return as soon as Ray has it.

        The job is watched in the background for as long as this worker is open.
        """
        follower, pid = await self._submit(flow_run, configuration)
        await self._services.flow_runs.record_pid(flow_run.id, str(pid))
        await follower.link()  # this worker may be closed before it has time for more
        self._followed.in_background(
            partial(self._followed.follow, follower), f"ray-follow {flow_run.id}"
        )

    async def _submit(
        self, flow_run: "FlowRun", configuration: RayJobConfiguration
    ) -> tuple[Follower, InfrastructurePid]:
        logger = self.get_flow_run_logger(flow_run)
        with self._followed.in_hand(flow_run.id):
            history = await self._services.flow_runs.states(flow_run.id)
            job_id = submission_id(flow_run.id, present_claim(history) or flow_run.id)
            planned = await self._sources.find(configuration)
            with self._followed.submitting(job_id):
                # First of all, as a cluster may take minutes to start.
                await self._recovery.own(flow_run.id, job_id, planned)
                cluster = await self._sources.acquire(configuration, logger.info)
                if cluster != planned:
                    await self._recovery.own(flow_run.id, job_id, cluster)
                warn_of_local_api(cluster, PREFECT_API_URL.value(), logger.warning)
                attempt = await present_attempt(
                    self._services, flow_run, configuration, cluster, history
                )
                submitter = Submitter(self._services, attempt)
                with self._followed.submitting(job_id, attempt):
                    pid = await submitter.submit()
        return Follower(self._services, attempt, submitter), pid

    async def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: RayJobConfiguration,
        grace_seconds: int = 30,
    ) -> None:
        """Stop the job behind a pid and confirm that it ended. Calling it again does no harm.

        Args:
            infrastructure_pid: As this worker recorded it on the flow run.
            configuration: Grants access to the cluster; which job it is, the pid says.
            grace_seconds: How long the driver may take to stop, in seconds.

        Raises:
            InfrastructureNotFound: A reachable cluster does not have the job.
            InfrastructureNotAvailable: The cluster does not answer, is not the configured one,
                or the job has not ended in time.
        """
        try:
            pid = InfrastructurePid.parse(infrastructure_pid)
        except ValueError as exc:
            raise InfrastructureNotAvailable(f"{exc}; it belongs to another worker type.") from None
        run_id = run_in(pid.submission_id)
        of_run = configuration.labels.get("prefect.io/flow-run-id", str(run_id))
        if run_id is None or str(run_id) != of_run:
            # Anyone who may update the run can write its pid, and name the job of another one.
            raise InfrastructureNotAvailable(f"{infrastructure_pid!r} is not a job of this run.")
        cluster = await self._sources.find(configuration)
        if cluster is None or cluster.ref != pid.cluster:
            configured = cluster.ref if cluster else "no running cluster"
            raise InfrastructureNotAvailable(
                f"The job is on the Ray cluster {pid.cluster}, and this worker is configured for "
                f"{configured}."
            )
        opened = await self._clusters.get(cluster)
        stopping = await stop_and_confirm(
            opened.client,
            pid.submission_id,
            grace_seconds=max(grace_seconds, configuration.stop_grace_seconds),
            timing=self.timing,
            of_run=run_id,
        )
        match stopping:
            case Stopping.GONE:
                raise InfrastructureNotFound(f"{pid.cluster} has no job {pid.submission_id}.")
            case Stopping.FOREIGN:
                raise InfrastructureNotAvailable(
                    f"The record of the Ray Job {pid.submission_id} does not name this run."
                )
            case Stopping.UNREACHABLE | Stopping.UNCONFIRMED:
                raise InfrastructureNotAvailable(
                    f"The Ray Job {pid.submission_id} could not be stopped: {stopping.value}."
                )
            case Stopping.ENDED | Stopping.QUEUED:
                worker_logger(self).info("Ray Job %s: stop %s.", pid.submission_id, stopping.value)

    async def _configuration_of(self, flow_run: "FlowRun") -> RayJobConfiguration:
        return await RayJobConfiguration.resolve_for_flow_run(
            flow_run,
            client=self.client,
            work_pool=self.work_pool.model_copy(deep=True),
            worker_name=self.name,
            worker_id=self.backend_id,
        )

    async def _resolve_anew(self, opened: OpenCluster) -> Cluster | None:
        """Return a cluster as the configuration of one of its followed runs has it now."""
        for follower in self._followed.followers:
            if follower.attempt.cluster is opened:
                flow_run = follower.attempt.flow_run.model_copy(deep=True)
                return await self._sources.find(await self._configuration_of(flow_run))
        return None

    def _logs_of(self, limiter: anyio.CapacityLimiter, flow_run_id: "UUID") -> LogSink:
        return PrefectLogs(self.client, flow_run_id, limiter)

    def _pool(self) -> "WorkPool":
        return self.work_pool

    async def _ask_cancelling(self, _: "Collection[UUID]") -> "set[UUID]":
        return await cancelling_runs(self.client, self.work_pool.id)

    async def _ask_settled_outside(self, run_ids: "Collection[UUID]") -> "set[UUID]":
        return await settled_outside(self.client, run_ids)

    async def _give_up_what_was_interrupted(self) -> None:
        """Leave to others, at once, what this process did not follow to the end."""
        if self._followed.interrupted:
            with anyio.move_on_after(_GIVE_UP_SECONDS, shield=True):
                async with get_client() as client:  # the worker's own is closed by now
                    await self._recovery.give_up(FlowRuns(client), self._followed.interrupted)

    async def _stay_online(self) -> None:
        """Send heartbeats while a worker that was started with `--run-once` finishes its runs.

        Prefect sends one (3.8.8). After three missed ones other workers take over the runs.
        """
        while True:
            await anyio.sleep(self.heartbeat_interval_seconds)
            try:
                await self.client.send_worker_heartbeat(
                    self.work_pool.name, self.name, self.heartbeat_interval_seconds
                )
            except Exception as exc:  # noqa: BLE001 (the runs are finished all the same)
                worker_logger(self).debug("The heartbeat was not sent: %s", exc)

    async def _offer_block(self) -> None:
        """Make the `RayCluster` block known to the server, so that the UI can offer it."""
        try:
            await RayCluster.aregister_type_and_schema(client=self.client)
        except Exception as exc:  # noqa: BLE001 (a worker works without the UI's form)
            worker_logger(self).warning(
                "The RayCluster block type could not be registered (%s); `prefect block "
                "register -m prefect_ray_worker.config.block` does it later.",
                exc,
            )
