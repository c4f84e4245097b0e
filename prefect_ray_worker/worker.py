"""`RayWorker`: what Prefect calls. It wires the rooms together and translates their errors."""

import gc
import platform
import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import anyio.abc
from prefect.logging.loggers import flow_run_logger
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES,
)
from prefect.workers.base import BaseWorker, BaseWorkerResult

from prefect_ray_worker._version import documentation_url
from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.open import OpenClusters
from prefect_ray_worker.config.block import LOGO_URL, register_block
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.secrets import warnings_of
from prefect_ray_worker.config.variables import RayWorkerVariables
from prefect_ray_worker.errors import InvalidConfiguration, without_groups
from prefect_ray_worker.prefect_api.answers import outlast, wait_for_answer
from prefect_ray_worker.prefect_api.claims import claim
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents
from prefect_ray_worker.prefect_api.compat.workers import (
    exit_stack,
    forget_submission,
    has_pool,
    pool_name,
    read_work_pool,
    related_resources,
    runs_task_group,
    work_queues,
    worker_logger,
)
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.prefect_api.pool import stay_online
from prefect_ray_worker.prefect_api.shared_reads import share_reads
from prefect_ray_worker.runs.attended import Attendance
from prefect_ray_worker.runs.begin import begin
from prefect_ray_worker.runs.configurations import Configurations
from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.runs.held_back import HeldBack
from prefect_ray_worker.runs.lease import FOR_EVER
from prefect_ray_worker.runs.preparing import Preparing
from prefect_ray_worker.runs.recovery.labels import Worker
from prefect_ray_worker.runs.recovery.recovery import Recovery
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.stop import kill_by_pid
from prefect_ray_worker.runs.timing import DEFAULT_TIMING, Timing
from prefect_ray_worker.runs.wake import Wake
from prefect_ray_worker.runs.wiring import services_of
from prefect_ray_worker.settings import worker_settings
from prefect_ray_worker.shared.ids import InfrastructurePid
from prefect_ray_worker.shared.masking import masked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AsyncExitStack
    from uuid import UUID

    from anyio.abc import TaskGroup
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import WorkerFlowRunResponse
    from prefect.flows import Flow
    from prefect.futures import PrefectFlowRunFuture


# A worker whose looks come late may have been frozen. Others take its runs after three heartbeats,
# which are six looks.
_FRESH_LOOKS = 4
# Between two looks whether the pool has been read.
_POOL_SECONDS = 0.5
_NO_RUN = RayJobConfiguration()


class RayWorkerResult(BaseWorkerResult):
    """The job's infrastructure pid, and always the status code 0.

    `RayWorker.run` settles the flow run itself. For any other code Prefect proposes Crashed
    (3.8.8), whatever attempt at the run goes on by then. How the run ended is in its state.
    """


class RayWorker(BaseWorker[RayJobConfiguration, RayWorkerVariables, RayWorkerResult]):
    """Runs the flow runs of a `ray` work pool as Ray Jobs.

    `prefect worker start --pool <pool>` starts it. The class is public for `worker.submit` and
    for flows that are bound to infrastructure. It never imports `ray`.

    `worker.submit` and bound flows use it without `start`. Then it only submits: it is not online,
    adopts no runs, and starts no Ray.

    Attributes:
        serves: Whether this process works for its pool; `start` sets it.
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
    serves: bool = False
    _runs_once = False
    _has_left_some = False
    _display_name = "Ray"
    _documentation_url = documentation_url()
    _logo_url = LOGO_URL

    async def start(
        self,
        run_once: bool = False,
        with_healthcheck: bool = False,
        printer: "Callable[..., None]" = print,
    ) -> None:
        """Work until told to stop, as Prefect's own worker does; its loop is this process's job.

        Raises:
            SystemExit: A setting cannot be used; the message names it.
        """
        gc.freeze()  # what is imported stays: later collections need not look at it
        self._runs_once, self.serves = run_once, True
        try:
            for warning in warnings_of(
                send_secrets=worker_settings().send_secrets,
                api_url=PREFECT_API_URL.value() or "",
                auto_install=PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES.value(),
            ):
                worker_logger(self).warning(warning)
            await super().start(run_once, with_healthcheck, printer)
        except InvalidConfiguration as exc:
            # `prefect worker start` prints a traceback of any other exception (3.8.8).
            raise SystemExit(f"The worker cannot start: {exc}") from None

    async def setup(self) -> None:
        """Open what the runs share, then everything of Prefect's own worker."""
        stack = exit_stack(self)
        self._looks, self._held_back = anyio.Lock(), HeldBack()
        try:
            await self._open(stack)
        except BaseException as exc:
            # Prefect tears down only a worker whose set-up has ended.
            with without_groups(exc):
                await stack.__aexit__(*sys.exc_info())
            raise

    async def _open(self, stack: "AsyncExitStack") -> None:
        # Left in the opposite order: first the followers of adopted runs, then Prefect's runs,
        # which need clusters and the cancelling loop to the last, then these.
        settings = worker_settings()
        # Prefect opens its client later.
        events = ClusterEvents(lambda: self.client, partial(related_resources, self, _NO_RUN))
        self._sources = ClusterSources.of_worker(PREFECT_HOME.value(), settings.address, events)
        self._followed = FollowedRuns(self._sources.count_as_ended)
        self._configurations = Configurations(self, self._sources, self._followed)
        self._attendance = Attendance(lambda: self.client, settings.poll_interval_seconds)
        stack.push_async_callback(self._sources.close, worker_logger(self).info)
        self._clusters = await stack.enter_async_context(
            OpenClusters(
                interval=settings.poll_interval_seconds,
                resolve_anew=self._configurations.cluster_anew,
                why_gone=self._sources.why_gone,
                workers=lambda: self._recovery.workers_online,
            )
        )
        services = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(services.cancel_scope.cancel)
        services.start_soon(self._attendance.run, name="ray-attendance")
        # Once nothing follows any more: until then two workers would do the same.
        stack.push_async_callback(self._give_up_what_was_interrupted)
        await super().setup()
        share_reads(self.client)
        if self._runs_once:
            services.start_soon(self._beat, name="ray-heartbeat")
        me = Worker(self.name, instance=uuid4().hex[:12], host=platform.node())
        interval = max(self.heartbeat_interval_seconds / 2, 1.0)
        shared = (self._clusters, self._sources, self._followed, self._attendance)
        lease = (me.instance, _FRESH_LOOKS * interval)
        self._services = services_of(self, settings, *shared, lease=lease, timing=self.timing)
        self._preparing = Preparing(self._services, self._followed)
        self._recovery = Recovery(
            me,
            lambda: self.work_pool,
            self._services,
            self._sources,
            self._followed,
            self._configurations.of,
            queues=work_queues(self),
            interval=interval,
        )
        look, hurry = self.get_and_submit_flow_runs, self._attendance.cancelling.look_now
        self._wake = Wake(look, hurry, self._recovery.turn_of, worker_logger(self))
        followers = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(followers.cancel_scope.cancel)
        self._followed.open(followers, logs=runs_task_group(self))
        # A worker that is being closed finishes its submissions, and follows no more runs.
        stack.callback(self._followed.close)
        services.start_soon(self._services.slots.run, name="ray-slots")
        followers.start_soon(self._services.waiting.run, name="ray-waiting")
        if not self.serves:
            self._services.lease.renew(FOR_EVER)  # no other worker takes over what a caller does
        elif has_pool(self):
            await self._serve(followers)
        else:
            followers.start_soon(self._serve, followers, name="ray-serve")

    async def _beat(self) -> None:
        who = (self.client, pool_name(self), self.name)
        await stay_online(*who, every=self.heartbeat_interval_seconds)

    async def _serve(self, followers: "TaskGroup") -> None:
        while not has_pool(self):  # noqa: ASYNC110 (Prefect's own loop goes on asking for it)
            await anyio.sleep(_POOL_SECONDS)
        tell = worker_logger(self).info
        await self._sources.take_over(tell)
        await self._sources.say_where_runs_go(self.work_pool.base_job_template, self.client, tell)
        await register_block(self.client, worker_logger(self).warning)
        followers.start_soon(self._recovery.run, name="ray-recovery")
        if not self._runs_once:
            # A worker that is being closed takes no more runs.
            followers.start_soon(self._wake.run, lambda: self.work_pool, name="ray-wake")

    async def run(
        self,
        flow_run: "FlowRun",
        configuration: RayJobConfiguration,
        task_status: "anyio.abc.TaskStatus[Any] | None" = None,
    ) -> RayWorkerResult:
        """Submit the run's job, and return when the run is settled. Its log can arrive later.

        Args:
            flow_run: The run.
            configuration: The run's configuration.
            task_status: Receives the infrastructure pid when Ray has the job; None if it will not.

        Raises:
            RayWorkerError: Before the job was accepted; Prefect then marks the run Crashed.
        """
        self._preparing.begun(flow_run.id)
        submitted = await self._submit(flow_run, configuration, super()._propose_submitting_state)
        if submitted is None:
            if task_status is not None:
                task_status.started(None)
            return RayWorkerResult(identifier="", status_code=0)
        follower, pid = submitted
        if task_status is not None:
            task_status.started(str(pid))
        await self._followed.follow(follower)
        if self._has_left_some:
            self._wake.within(0.1)  # by then Prefect has freed the slot of `--limit`
        return RayWorkerResult(identifier=str(pid), status_code=0)

    async def get_and_submit_flow_runs(self) -> "list[FlowRun]":
        """Look for scheduled runs. An API that is busy or away makes the worker slower."""
        async with self._looks:  # an answer that was overtaken would show runs that have begun
            ask = super().get_and_submit_flow_runs
            return await outlast(ask, worker_logger(self), once=self._runs_once)

    async def sync_with_backend(self) -> None:
        """Read the work pool and, in a worker that serves it, say that it is online."""
        sync = super().sync_with_backend if self.serves else partial(read_work_pool, self)
        await outlast(sync, worker_logger(self), once=self._runs_once or not self.serves)

    async def _submit_scheduled_flow_runs(
        self, flow_run_response: "list[WorkerFlowRunResponse]"
    ) -> "list[FlowRun]":
        """Submit scheduled runs, except those of which an attempt has not ended here.

        Prefect asks for them again. With `--limit` it would end this worker instead: it takes a
        slot in the name of the run, which has one (3.8.8). Runs that could not be claimed wait.
        """
        busy, held = self._followed.is_busy_with, self._held_back
        runs = ((entry, entry.flow_run.id) for entry in flow_run_response)
        free = [entry for entry, run_id in runs if not busy(run_id) and run_id not in held]
        submitted = await super()._submit_scheduled_flow_runs(free)
        self._has_left_some = len(submitted) < len(flow_run_response)
        return submitted

    async def _submit_run(self, flow_run: "FlowRun") -> None:
        """Submit a run; leave it to a later poll if the Prefect API does not say what it is.

        A single 500 for its deployment would end this worker, and a run without its deployment
        would keep its slot of `--limit` (3.8.8).
        """
        try:
            with self._followed.in_hand(flow_run.id):  # from its claim until Ray has its job
                await super()._submit_run(flow_run)
            self._held_back.passed(flow_run.id)
        except Exception as exc:  # noqa: BLE001 (one run must not end the work for all others)
            logs = (worker_logger(self), self.get_flow_run_logger(flow_run))
            self._held_back.failed(flow_run.id, masked(str(exc)), *logs)
            forget_submission(self, flow_run.id)
        if not self._followed.is_busy_with(flow_run.id):
            self._release_limit_slot(flow_run.id)
            if flow_run.id in self._held_back and self._has_left_some:
                self._wake.within(0.1)

    async def _submit_run_and_capture_errors(
        self, flow_run: "FlowRun", task_status: "anyio.abc.TaskStatus[Any] | None" = None
    ) -> BaseWorkerResult | Exception:
        """Submit a claimed run, unless it is over before Prefect has said all about it."""
        submit = super()._submit_run_and_capture_errors
        with self._preparing.until_begun(flow_run, task_status):
            return await submit(flow_run, task_status)
        return RayWorkerResult(identifier="", status_code=0)

    async def _give_worker_labels_to_flow_run(self, flow_run_id: "UUID") -> None:
        give = super()._give_worker_labels_to_flow_run
        log = flow_run_logger(flow_run_id=flow_run_id)  # an error would crash the claimed run
        await wait_for_answer(lambda: give(flow_run_id), run_log=log)

    async def _propose_pending_state(self, flow_run: "FlowRun") -> bool:
        """Claim a run, and note the claim for `begin`: other workers can be granted one too."""
        claim_id = await claim(self.client, flow_run, self.get_flow_run_logger(flow_run))
        if claim_id is not None:
            self._followed.claimed(flow_run.id, claim_id)
        return claim_id is not None

    async def _propose_submitting_state(self, flow_run: "FlowRun") -> None:
        """Leave the state to `begin`: the server grants it to runs that have ended, too (3.8.8)."""

    async def submit(
        self,
        flow: "Flow[..., Any]",
        parameters: "dict[str, Any] | None" = None,
        job_variables: "dict[str, Any] | None" = None,
        flow_run: "FlowRun | None" = None,
    ) -> "PrefectFlowRunFuture[Any]":
        """Submit a flow as a bundle, and return its future; see Prefect's `BaseWorker.submit`."""
        future = await super().submit(flow, parameters, job_variables, flow_run)
        await self._recovery.announce_upload(future.flow_run_id)
        return future

    async def _initiate_run(self, flow_run: "FlowRun", configuration: RayJobConfiguration) -> None:
        """Submit the run's job and return as soon as Ray has it.

        A worker that serves its pool then watches the job. A caller leaves that to others.
        """
        submitted = await self._submit(flow_run, configuration)
        if submitted is None:
            return
        follower, pid = submitted
        await self._services.flow_runs.record_pid(flow_run.id, str(pid))
        await follower.link()  # this process may end before it has time for more
        if self.serves:
            self._followed.in_background(
                partial(self._followed.follow, follower), f"ray-follow {flow_run.id}"
            )
        else:
            await self._recovery.give_up(self._services.flow_runs, [follower.attempt.left])

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the worker. Unwrap what was raised inside: task groups make groups of it."""
        with without_groups(exc_info[1]):
            await super().__aexit__(*exc_info)

    async def _submit(
        self,
        flow_run: "FlowRun",
        configuration: RayJobConfiguration,
        show: "Callable[[FlowRun], Awaitable[None]] | None" = None,
    ) -> tuple[Follower, InfrastructurePid] | None:
        """Submit the run's job; None if the run has ended, or gone on, without this worker."""
        shared = (self._services, self._followed, self._recovery.own)
        return await begin(*shared, flow_run, configuration, may_start=self.serves, show=show)

    async def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: RayJobConfiguration,
        grace_seconds: int = 30,
    ) -> None:
        """Stop the job behind a pid and confirm that it ended. Calling it again does no harm.

        Raises:
            InfrastructureNotFound: A reachable cluster does not have the job.
            InfrastructureNotAvailable: The cluster does not answer, is not the configured one,
                or the job has not ended in time.
        """
        clusters = (self._sources, self._clusters, FlowRuns(self.client))
        which = (infrastructure_pid, configuration, *clusters)
        said = await kill_by_pid(*which, grace=grace_seconds, timing=self.timing)
        worker_logger(self).info("%s", said)

    async def _give_up_what_was_interrupted(self) -> None:
        if left := self._followed.interrupted:  # none if the set-up failed: no recovery, then
            await self._recovery.give_up_at_the_end(left)
