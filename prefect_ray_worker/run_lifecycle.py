"""`RunLifecycle`: one attempt at one flow run, from its submission to its settled end.

Made for one run and thrown away afterwards. The steps, in order:

1. `submit`: name the attempt, submit its job exactly once.
2. `follow`: watch the job; on a verdict, stop it or not, and settle the run.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from logging import Logger, LoggerAdapter
from typing import Any

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, StateType

from prefect_ray_worker import outcome
from prefect_ray_worker.cancellation import Stopping, stop_and_confirm
from prefect_ray_worker.configuration import RayJobConfiguration
from prefect_ray_worker.errors import JobsApiError, RequestRejected, SubmissionConflict
from prefect_ray_worker.flow_run_logs import PrefectLogs, longest_message
from prefect_ray_worker.flow_runs import FlowRuns, type_of_state
from prefect_ray_worker.identity import InfrastructurePid, submission_id
from prefect_ray_worker.jobs_api.models import JobDetails, JobStatus, JobSubmitRequest
from prefect_ray_worker.outcome import UNTOUCHED, Outcome, Resolution, crashed
from prefect_ray_worker.runtime_env import can_ship
from prefect_ray_worker.secrets_policy import Delivery
from prefect_ray_worker.settlement import Settlement
from prefect_ray_worker.shipping import archive_uri, ensure_shipped
from prefect_ray_worker.submission import Disposition, submit_once
from prefect_ray_worker.watching.cancelling import CancellingRuns
from prefect_ray_worker.watching.clusters import Cluster
from prefect_ray_worker.watching.logs.bridge import LogBridge
from prefect_ray_worker.watching.observation import Missing, Seen
from prefect_ray_worker.watching.verdict import Limits, Verdict, Watched, judge

# How long a driver that exited with 0 may take to have its last state seen by the API.
_REPORT_GRACE_SECONDS = 5.0
# How long a cluster may be silent before its runs are looked up one by one.
_SILENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Surroundings:
    """What a lifecycle shares with the other runs of its worker.

    Attributes:
        client: The worker's client of Prefect.
        flow_runs: The Prefect side.
        cancelling: Which runs are being cancelled.
        unreachable_limit: Seconds for which a cluster may be silent.
        ship_driver: Whether to bring our package to the cluster.
        delivery: How secrets reach the jobs.
        log_limiter: Requests of logs to Prefect at once.
    """

    client: PrefectClient
    flow_runs: FlowRuns
    cancelling: CancellingRuns
    unreachable_limit: float
    ship_driver: bool
    delivery: Delivery
    log_limiter: anyio.CapacityLimiter


class RunLifecycle:
    """One attempt at one flow run.

    Args:
        flow_run: The run.
        configuration: Prepared for the run.
        cluster: Where the job goes.
        surroundings: What the worker's runs share.
        logger: Logs to the flow run.
    """

    def __init__(
        self,
        flow_run: FlowRun,
        configuration: RayJobConfiguration,
        cluster: Cluster,
        surroundings: Surroundings,
        logger: "Logger | LoggerAdapter[Any]",
    ) -> None:
        self._run_id = flow_run.id
        self._flow_run = flow_run
        self._configuration = configuration
        self._cluster = cluster
        self._around = surroundings
        self._log = logger
        self._request: JobSubmitRequest | None = None
        self._bridge: LogBridge | None = None
        self._settlement: Settlement | None = None
        self._disposition = Disposition.UNSETTLED
        self._stop_is_queued = False
        self._session: str | None = None
        self._address = cluster.client.connection.address
        self._ships = surroundings.ship_driver and can_ship(configuration.runtime_env)
        self._limits = Limits(
            start=configuration.start_timeout_seconds,
            run=configuration.run_timeout_seconds,
            stop_grace=configuration.stop_grace_seconds,
            unreachable=surroundings.unreachable_limit,
        )

    async def submit(self) -> InfrastructurePid:
        """Submit the attempt's job exactly once and say where it is.

        Raises:
            InvalidConfiguration: The job cannot be expressed; nothing was sent.
            JobsApiError: It is settled that Ray did not take the job.
            SubmissionConflict: A foreign job has our id.
        """
        claim_id = await self._around.flow_runs.claim_id(self._flow_run)
        self._settlement = Settlement(self._around.flow_runs, self._flow_run, claim_id, self._log)
        self._request = self._configuration.submission_request(
            submission_id(self._run_id, claim_id),
            package=await archive_uri() if self._ships else None,
            delivery=self._around.delivery,
        )
        self._session = await self._session_name()
        await self._submit_request(self._request)
        return InfrastructurePid(self._address, self.job_id, self._session)

    async def bridge_logs(self) -> None:
        """Forward the job's log, if the run wants it; ends a little after the job."""
        if self._configuration.forward_logs:
            self._bridge = LogBridge(
                self.job_id,
                reads=self._cluster.logs,
                sink=PrefectLogs(self._around.client, self._run_id, self._around.log_limiter),
                longest=longest_message(),
            )
            await self._bridge.run()

    def end_logs(self) -> None:
        """Have the job's log forwarded to its end, and no further."""
        if self._bridge is not None:
            self._bridge.end()

    async def follow(self) -> Outcome:
        """Watch the job until the run is settled; return what was decided."""
        with (
            self._cluster.poller.watch(self.job_id) as watch,
            self._around.cancelling.attended(self._run_id),
        ):
            watched = Watched(submitted_at=anyio.current_time(), arrived=self._has_arrived)
            while True:
                observation = await watch.next()
                now = anyio.current_time()
                before, watched = watched, watched.after(observation, now)
                if self._bridge is not None and isinstance(observation, Seen):
                    self._bridge.observe(observation.details)
                if self._run_id in self._around.cancelling:
                    watched = watched.cancelled_at(now)
                self._tell(before, watched)
                verdict = judge(watched, self._limits, now)
                if verdict is Verdict.NEVER_ARRIVED:
                    decided = await self._never_arrived(watched)
                    if self._has_arrived:
                        # From here on a missing job is one that may have run.
                        now = anyio.current_time()
                        watched = replace(watched, arrived=True, submitted_at=now, missing=False)
                elif isinstance(observation, Missing) and verdict is Verdict.LOST:
                    decided = await self._lost(observation.session_name)
                else:
                    decided = await self._act_on(verdict, watched)
                if decided is not None:
                    return decided

    @property
    def may_still_start(self) -> bool:
        """Whether the run was settled while Ray held its job back, with a stop queued."""
        return self._stop_is_queued

    async def prevent_start(self) -> None:
        """Stop the job again should it ever start: the queue of the stop is not durable."""
        with self._cluster.poller.watch(self.job_id) as watch:
            while True:
                observation = await watch.next()
                if isinstance(observation, Missing):
                    return
                if isinstance(observation, Seen):
                    if observation.details.is_terminal:
                        return
                    if observation.details.status != JobStatus.PENDING:
                        await self._stop()

    @property
    def job_id(self) -> str:
        """The job's submission id, once the run has been submitted."""
        if self._request is None:
            raise RuntimeError("The run has not been submitted.")
        return self._request.submission_id

    @property
    def _has_arrived(self) -> bool:
        return self._disposition is not Disposition.UNSETTLED

    async def _state(self) -> StateType | None:
        run = await self._around.flow_runs.read(self._run_id)
        return type_of_state(run) if run is not None else None

    async def _session_name(self) -> str | None:
        try:
            return (await self._cluster.client.version()).session_name
        except JobsApiError:
            return None  # the submission itself will say what is wrong

    async def _submit_request(self, request: JobSubmitRequest) -> None:
        self._disposition = await submit_once(
            self._cluster.client,
            request,
            flow_run_id=self._run_id,
            report=self._log.warning,
            prepare=ensure_shipped if self._ships else None,
        )
        match self._disposition:
            case Disposition.SUBMITTED:
                said = "submitted"
            case Disposition.ADOPTED:
                said = "was already there; watching it"
            case Disposition.UNSETTLED:
                said = "may have been taken by a cluster that does not answer; watching for it"
        self._log.info(
            "Ray Job %s %s. Dashboard: %s/#/jobs/%s",
            request.submission_id,
            said,
            self._address,
            request.submission_id,
        )

    async def _never_arrived(self, watched: Watched) -> Outcome | None:
        """Submit the job again, if its run still waits for this very attempt."""
        match await self._state():
            case StateType.PENDING if not await self._is_superseded():
                return await self._submit_again(watched)
            case StateType.RUNNING:
                return await self._lost(None)  # only the job itself reports that
            case StateType.CANCELLING:
                return await self._settle(
                    Outcome(Resolution.CANCEL, "Cancelled before Ray had the job.")
                )
            case _:
                return UNTOUCHED

    async def _submit_again(self, watched: Watched) -> Outcome | None:
        limit = self._limits.unreachable
        if self._request is None or anyio.current_time() - watched.submitted_at >= limit:
            return await self._settle(
                crashed(
                    f"The Ray cluster at {self._address} answers, and has not taken the job for "
                    f"{limit:g} s. What it answered is in the logs of the run."
                )
            )
        try:
            await self._submit_request(self._request)
        except (RequestRejected, SubmissionConflict) as exc:
            return await self._settle(crashed(str(exc)))
        except JobsApiError as exc:
            # The next look decides: unreachable waits, missing comes back here.
            self._log.warning("The Ray Job could not be submitted again yet: %s", exc)
        return None

    async def _act_on(self, verdict: Verdict, watched: Watched) -> Outcome | None:
        match verdict:
            case Verdict.ENDED:
                return await self._ended(watched)
            case Verdict.START_OVERDUE:
                return await self._stop_overdue(self._start_overdue(watched))
            case Verdict.RUN_OVERDUE:
                return await self._stop_overdue(
                    f"The run timeout of {self._limits.run:g} s (run_timeout_seconds) is over; "
                    "the Ray Job was stopped. Raise the limit, or make the flow faster."
                )
            case Verdict.CANCEL_OVERDUE:
                return await self._cancel(watched)
            case Verdict.SILENT_TOO_LONG:
                return await self._silent_too_long(watched)
            case _:
                return await self._settled_without_us(watched)

    async def _ended(self, watched: Watched) -> Outcome:
        job = watched.latest
        if job is None:
            return UNTOUCHED
        deadline = anyio.current_time() + _REPORT_GRACE_SECONDS
        while True:
            decided = outcome.of_ended_job(job, await self._state())
            patient = decided.resolution is Resolution.CRASH and not _failed_by_itself(job)
            if not patient or anyio.current_time() >= deadline:
                return await self._settle(decided)
            await anyio.sleep(1)

    async def _lost(self, session_now: str | None) -> Outcome:
        if await self._state() == StateType.CANCELLING:
            gone = "Cancelled; the Ray cluster does not have the job any more."
            return await self._settle(Outcome(Resolution.CANCEL, gone))
        return await self._settle(
            outcome.of_lost_job(self.job_id, then=self._session, now=session_now)
        )

    async def _cancel(self, watched: Watched) -> Outcome | None:
        stopping = await self._stop()
        match stopping:
            case Stopping.ENDED | Stopping.GONE:
                message = "Cancelled; the Ray Job was stopped and has ended."
                if watched.running_since is None:
                    message = "Cancelled before the Ray Job started."
            case Stopping.QUEUED:
                message = (
                    "Cancelled while the Ray Job waited for resources or its environment. Ray "
                    "has queued the stop and ends the job as soon as it would start."
                )
            case Stopping.UNCONFIRMED | Stopping.UNREACHABLE:
                self._log.warning(
                    "The Ray Job %s was asked to stop and has not ended yet (%s); going on.",
                    self.job_id,
                    stopping.value,
                )
                return None
        return await self._settle(Outcome(Resolution.CANCEL, message))

    async def _stop_overdue(self, message: str) -> Outcome | None:
        self._log.warning("%s", message)
        stopping = await self._stop()
        if stopping in (Stopping.UNCONFIRMED, Stopping.UNREACHABLE):
            self._log.warning("The Ray Job has not ended yet (%s); going on.", stopping.value)
            return None
        # The stop makes the engine report a crash of its own; the limit is the better message.
        return await self._settle(crashed(message), rename=True)

    async def _stop(self) -> Stopping:
        stopping = await stop_and_confirm(
            self._cluster.client, self.job_id, grace_seconds=self._limits.stop_grace
        )
        self._stop_is_queued = stopping is Stopping.QUEUED
        return stopping

    def _start_overdue(self, watched: Watched) -> str:
        said = watched.latest.message if watched.latest is not None else None
        return (
            f"The start timeout of {self._limits.start:g} s (start_timeout_seconds) is over and "
            f"the Ray Job is still PENDING. It asks for: "
            f"{self._configuration.requested_resources()}. Ray says: {said or 'nothing'} "
            "Free or add such resources, ask for less, or raise the limit."
        )

    async def _settled_without_us(self, watched: Watched) -> Outcome | None:
        """While the cluster is silent, look whether the driver has reported an end meanwhile."""
        silent_since = watched.unreachable_since
        if silent_since is None or anyio.current_time() - silent_since < _SILENCE_SECONDS:
            return None
        run = await self._around.flow_runs.read(self._run_id)
        ended = run is None or (run.state is not None and run.state.is_final())
        return UNTOUCHED if ended else None

    async def _silent_too_long(self, watched: Watched) -> Outcome | None:
        alive = await self._around.flow_runs.last_sign_of_life(self._run_id)
        limit = self._limits.unreachable
        if alive is not None and (datetime.now(UTC) - alive).total_seconds() < limit:
            return None
        return await self._settle(
            crashed(
                f"The Ray cluster at {self._address} has not answered for {limit:g} s and the run "
                f"has given no sign of life since. Last error: {watched.trouble}"
            )
        )

    async def _is_superseded(self) -> bool:
        return self._settlement is not None and await self._settlement.is_superseded()

    async def _settle(self, decided: Outcome, *, rename: bool = False) -> Outcome:
        if self._settlement is None:
            return UNTOUCHED
        return await self._settlement.settle(decided, rename=rename)

    def _tell(self, before: Watched, after: Watched) -> None:
        """Log what changed, once: the flow run's log is where the user looks."""
        if before.unreachable_since is None and after.unreachable_since is not None:
            self._log.warning(
                "The Ray cluster does not answer; the run is left as it is until it does. %s",
                after.trouble,
            )
        elif before.unreachable_since is not None and after.unreachable_since is None:
            self._log.info("The Ray cluster answers again.")
        status = after.latest.status if after.latest is not None else None
        previous = before.latest.status if before.latest is not None else None
        if status is not None and status != previous:
            self._log.info("Ray Job %s is %s.", self.job_id, status)


def _failed_by_itself(job: JobDetails) -> bool:
    """Say whether the driver's own exit code proves that no more report will come."""
    return job.driver_exit_code not in (None, 0)
