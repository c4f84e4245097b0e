"""`ProbeJob`: one Ray Job as a worker would submit it, followed to its end and removed again."""

import inspect
import shlex
import time
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

import anyio
from prefect.client.schemas.objects import FlowRun

from prefect_ray_worker.config.runtime_env import can_ship
from prefect_ray_worker.config.secrets import Delivery
from prefect_ray_worker.diagnosis.job import Context, Ended, of_job, start_overdue
from prefect_ray_worker.diagnosis.waiting import why_waiting
from prefect_ray_worker.doctor import probe
from prefect_ray_worker.doctor.check import Check, Subject, failed, ok
from prefect_ray_worker.doctor.target import Target
from prefect_ray_worker.errors import JobNotFound, JobsApiError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobDetails, JobSubmitRequest
from prefect_ray_worker.ray_api.resources import asked_for
from prefect_ray_worker.runs.explain import resources_of
from prefect_ray_worker.runs.shipping import archive_uri
from prefect_ray_worker.runs.stop import stop_and_confirm
from prefect_ray_worker.settings import RayWorkerSettings

_NAME: Final = "prefect-ray-worker-doctor"
_LOOK_SECONDS: Final = 0.25
# How long Ray may take to end a probe that is asked to stop: it has nothing to tidy up.
_GRACE_SECONDS: Final = 2
# A record that is deleted less than about 2 s after its job's end comes back without metadata
# (observed on 2.60).
_GHOST_SECONDS: Final = 3.0
_DELETIONS: Final = 3


async def probe_request(target: Target, settings: RayWorkerSettings) -> JobSubmitRequest:
    """Return the probe's job: that of a flow run of the target, but for the command."""
    configuration = target.configuration.model_copy(deep=True)
    source, pool = inspect.getsource(probe), target.pool or ""
    configuration.command = f"exec python -c {shlex.quote(source)} {shlex.quote(pool)}"
    configuration.stop_grace_seconds = _GRACE_SECONDS
    # Only for the environment that Prefect makes of the settings here: there is no such run.
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name=_NAME))
    package = await archive_uri() if ships(target, settings) else None
    request = configuration.submission_request(
        f"{_NAME}-{uuid4().hex[:12]}",
        package=package,
        delivery=Delivery(settings.node_secrets, settings.send_secrets),
    )
    # Without the labels by which workers know the jobs of their pool: they would tidy it up.
    return request.model_copy(update={"metadata": {"job_name": _NAME}})


def ships(target: Target, settings: RayWorkerSettings) -> bool:
    """Say whether jobs of the target are given the driver by the worker."""
    return settings.ship_driver and can_ship(target.configuration.runtime_env)


@dataclass(frozen=True)
class Probed:
    """How far a probe came.

    Attributes:
        check: Whether it started and ended, and how soon.
        job: Its record when it was last seen; None if Ray did not take it.
        began: This machine's clock before the submission, in seconds since the epoch.
        submitted: The same, when Ray had the job.
        ended: The same, when the job's end was seen.
    """

    check: Check
    job: JobDetails | None
    began: float
    submitted: float
    ended: float


class ProbeJob:
    """A job that is gone, with its record, when its context ends.

    Args:
        client: The cluster.
        request: The job.
    """

    def __init__(self, client: JobsClient, request: JobSubmitRequest) -> None:
        self._client = client
        self._request = request
        self._seen_ended: float | None = None
        self.left: Check | None = None
        """What was left of it, or that nothing was, once its context has ended."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            self.left = await self._remove()

    async def run(self, wait: float) -> Probed:
        """Submit it and follow it to its end.

        Args:
            wait: Seconds that it may take.
        """
        began = submitted = time.time()
        job, started = None, None
        answer = partial(Probed, began=began)
        try:
            with anyio.move_on_after(wait):
                await self._client.submit(self._request)
                submitted = time.time()
                while job is None or not job.is_terminal:
                    job = await self._client.get(self._request.submission_id)
                    if started is None and job.has_started:
                        started = time.time() - submitted
                    if not job.is_terminal:
                        await anyio.sleep(_LOOK_SECONDS)
        except JobsApiError as exc:
            check = failed(Subject.PROBE_JOB, exc)
            return answer(check, job, submitted=submitted, ended=time.time())
        if job is not None and job.is_terminal:
            self._seen_ended = anyio.current_time()
        check = await self._judged(job, started, wait)
        return answer(check, job, submitted=submitted, ended=time.time())

    async def _judged(self, job: JobDetails | None, started: float | None, wait: float) -> Check:
        if job is None:
            says = f"Ray has not taken a job within {wait:g} s."
            return failed(Subject.PROBE_JOB, says, "Look at the log of the head's dashboard agent.")
        context = Context(asked_for(self._request), None)
        if started is None:
            context = Context(context.asked, await resources_of(self._client))
            waiting = why_waiting(context.asked, context.cluster, job.message)
            late = start_overdue(wait, waiting, limited_by="--wait")
            return failed(Subject.PROBE_JOB, f"{late.category}: {late.cause}", late.advice)
        if not job.is_terminal:
            says = f"A job started after {started:.1f} s, and had not ended after {wait:g} s."
            return failed(Subject.PROBE_JOB, says, "What it had said until then is below.")
        if job.status != "SUCCEEDED":
            ended = Ended(job.status, job.error_type, job.driver_exit_code, job.message or "")
            return failed(Subject.PROBE_JOB, of_job(ended, context))
        return ok(Subject.PROBE_JOB, f"A job started {started:.1f} s after it was submitted.")

    async def _remove(self) -> Check:
        submission_id = self._request.submission_id
        try:
            if self._seen_ended is None:
                await stop_and_confirm(self._client, submission_id, grace_seconds=_GRACE_SECONDS)
                self._seen_ended = anyio.current_time()
            for _ in range(_DELETIONS):
                await anyio.sleep_until(self._seen_ended + _GHOST_SECONDS)
                await self._client.delete(submission_id)
                self._seen_ended = anyio.current_time() - _GHOST_SECONDS / 2
                await self._client.get(submission_id)
        except JobNotFound:
            return ok(Subject.CLEAN_UP, "The probe's job and its record are gone.")
        except JobsApiError as exc:
            return failed(
                Subject.CLEAN_UP,
                f"The probe's job {submission_id} may be left ({exc}).",
                f"`ray job stop {submission_id}` and `ray job delete {submission_id}` remove it; "
                "one that is PENDING ends by itself as soon as it could start.",
            )
        return failed(Subject.CLEAN_UP, f"The record of {submission_id} comes back.")
