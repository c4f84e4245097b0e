"""`ProbeJob`: submits the probe as a worker would, follows it, reads its findings, removes it."""

import inspect
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import anyio
from prefect.client.schemas.objects import FlowRun
from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_ray_worker.config.runtime_env import can_ship
from prefect_ray_worker.config.secrets import Delivery
from prefect_ray_worker.diagnosis.job import Context, Ended, of_job, start_overdue
from prefect_ray_worker.diagnosis.pending import Reason, why_waiting
from prefect_ray_worker.doctor import probe
from prefect_ray_worker.doctor.report import Check, CheckSubject, failed, ok, warning
from prefect_ray_worker.doctor.target import Target
from prefect_ray_worker.errors import JobNotFound, JobsApiError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobDetails, JobSubmitRequest
from prefect_ray_worker.ray_api.resources import asked_for
from prefect_ray_worker.runs.explain import resources_of
from prefect_ray_worker.runs.stop import stop_and_confirm
from prefect_ray_worker.runs.submit import archive_uri
from prefect_ray_worker.settings import RayWorkerSettings
from prefect_ray_worker.shared.diagnosis import Diagnosis

_NAME: Final = "prefect-ray-worker-doctor"
_LOOK_SECONDS: Final = 0.25
# How long Ray waits for a stopped probe to end: the probe has nothing to clean up.
_GRACE_SECONDS: Final = 2
# A head that has not noticed yet that a job has ended writes the job's record anew after it was
# deleted. It looks about once a second, later if it is busy (`job_manager.py`, Ray 2.60).
_NOTICED_SECONDS: Final = 2.0
_COMES_BACK_SECONDS: Final = 1.5
# A busy head takes that long to start the supervisor of a job.
_SUPERVISOR_SECONDS: Final = 10.0
_DELETIONS: Final = 3
_ASKING_NOTHING: Final[Mapping[str, None]] = {
    "entrypoint_num_cpus": None,
    "entrypoint_num_gpus": None,
    "entrypoint_memory": None,
    "entrypoint_resources": None,
    "entrypoint_label_selector": None,
}


async def probe_request(
    target: Target, settings: RayWorkerSettings, wait: float
) -> JobSubmitRequest:
    """Return the probe's job: a flow run's job for the target, with the probe as its command.

    Args:
        target: What is examined.
        settings: Those that a worker would have here.
        wait: For how many seconds its end is waited for.
    """
    configuration = target.configuration.model_copy(deep=True)
    source, pool = inspect.getsource(probe), target.pool or ""
    configuration.command = f"exec python -c {shlex.quote(source)} {shlex.quote(pool)} {wait:g}"
    configuration.stop_grace_seconds = _GRACE_SECONDS
    # Adds the environment that Prefect makes of the settings here. The flow run does not exist.
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name=_NAME))
    package = await archive_uri() if ships(target, settings) else None
    request = configuration.submission_request(
        f"{_NAME}-{uuid4().hex[:12]}",
        package=package,
        delivery=Delivery(settings.node_secrets, settings.send_secrets),
    )
    # Workers recognise the jobs of their pool by labels and would sweep a labelled probe.
    return request.model_copy(update={"metadata": {"job_name": _NAME}})


def ships(target: Target, settings: RayWorkerSettings) -> bool:
    """Return whether the worker sends the driver with the target's jobs."""
    return settings.ship_driver and can_ship(target.configuration.runtime_env)


@dataclass(frozen=True)
class ProbeRun:
    """How far a probe got.

    Attributes:
        check: Whether it started and ended, and how soon.
        job: Its record when last seen; None if Ray did not accept it.
        began: This machine's clock before the submission, in seconds since the epoch.
        submitted: The same, when Ray had accepted the job.
        ended: The same, when the job was seen to have ended.
    """

    check: Check
    job: JobDetails | None
    began: float
    submitted: float
    ended: float


class ProbeJob:
    """A job that is removed, with its record, when the context exits.

    Args:
        client: The cluster.
        request: The job.
    """

    def __init__(self, client: JobsClient, request: JobSubmitRequest) -> None:
        self._client = client
        self._request = request
        self._seen_ended: float | None = None
        self._dropped: tuple[str, str] | None = None
        self.left: Check | None = None
        """Whether anything was left behind; set when the context has exited."""

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

    async def run(self, wait: float) -> ProbeRun:
        """Submit the job and follow it to its end.

        Args:
            wait: The most seconds until it starts, and from there to its end.
        """
        await self._fit()
        began = submitted = time.time()
        job, started = None, None
        answer = partial(ProbeRun, began=began)
        try:
            with anyio.move_on_after(wait) as limit:
                await self._client.submit(self._request)
                submitted = time.time()
                while job is None or not job.is_terminal:
                    job = await self._client.get(self._request.submission_id)
                    if started is None and job.has_started:
                        started = time.time() - submitted
                        # The probe counts from here. What it finds must not get lost.
                        limit.deadline = anyio.current_time() + wait
                    if not job.is_terminal:
                        await anyio.sleep(_LOOK_SECONDS)
        except JobsApiError as exc:
            check = failed(CheckSubject.PROBE_JOB, exc)
            return answer(check, job, submitted=submitted, ended=time.time())
        if job is not None and job.is_terminal:
            self._seen_ended = anyio.current_time()
        check = await self._judged(job, started, wait)
        return answer(check, job, submitted=submitted, ended=time.time())

    async def _fit(self) -> None:
        """Drop a request that no node can fulfil, or of which that is not known.

        Ray would report it as an error in the logs of every run on the cluster, and such a job
        cannot be ended (2.60).
        """
        asked = asked_for(self._request)
        resources = await resources_of(self._client)
        waiting = why_waiting(asked, resources, None)
        if waiting.reason is Reason.INFEASIBLE:
            self._dropped = (
                waiting.sentence,
                "Lower them, or add such a node; an autoscaler may do so when a run asks for it.",
            )
        elif resources is None and (asked.resources or asked.labels):
            self._dropped = (
                f"The cluster does not list its nodes, so nothing shows whether one has {asked}.",
                "Let this machine read /api/v0/nodes of the dashboard, and look again.",
            )
        if self._dropped is not None:
            self._request = self._request.model_copy(update=dict(_ASKING_NOTHING))

    async def _judged(self, job: JobDetails | None, started: float | None, wait: float) -> Check:
        if job is None:
            says = f"Ray did not accept a job within {wait:g} s."
            return failed(
                CheckSubject.PROBE_JOB, says, "Read the log of the head's dashboard agent."
            )
        context = Context(asked_for(self._request), None)
        if started is None:
            context = Context(context.asked, await resources_of(self._client))
            waiting = why_waiting(context.asked, context.cluster, job.message)
            late = start_overdue(wait, waiting, limited_by="--wait")
            return _failed(late)
        if not job.is_terminal:
            says = f"A job started after {started:.1f} s but had not ended {wait:g} s later."
            return failed(
                CheckSubject.PROBE_JOB,
                says,
                "The lines below are what it found until then; `--wait` allows more time.",
            )
        if job.status != "SUCCEEDED":
            ended = Ended(job.status, job.error_type, job.driver_exit_code, job.message or "")
            return _failed(of_job(ended, context))
        says = f"A job started {started:.1f} s after it was submitted."
        if self._dropped is not None:
            why, advice = self._dropped
            says = f"{says} It ran without the entrypoint_ variables. {why}"
            return warning(CheckSubject.PROBE_JOB, says, advice)
        return ok(CheckSubject.PROBE_JOB, says)

    async def _wait_for_a_queued_stop(self) -> None:
        """Wait a little for a PENDING job: Ray ends it only once its supervisor has started."""
        with anyio.move_on_after(_SUPERVISOR_SECONDS):
            while True:
                job = await self._client.get(self._request.submission_id)
                if job.is_terminal:
                    return
                await anyio.sleep(_LOOK_SECONDS)

    async def _remove(self) -> Check:
        submission_id = self._request.submission_id
        try:
            if self._seen_ended is None:
                await stop_and_confirm(self._client, submission_id, grace_seconds=_GRACE_SECONDS)
                await self._wait_for_a_queued_stop()
                self._seen_ended = anyio.current_time()
            await anyio.sleep_until(self._seen_ended + _NOTICED_SECONDS)
            for _ in range(_DELETIONS):
                await self._client.delete(submission_id)
                await anyio.sleep(_COMES_BACK_SECONDS)
                await self._client.get(submission_id)
        except JobNotFound:
            return ok(CheckSubject.CLEAN_UP, "The probe's job and its record are gone.")
        except JobsApiError as exc:
            return failed(
                CheckSubject.CLEAN_UP,
                f"The probe's job {submission_id} may still exist ({exc}).",
                f"Remove it with `ray job stop {submission_id}` and then `ray job delete "
                f"{submission_id}`; a PENDING one ends by itself as soon as it can start.",
            )
        return failed(CheckSubject.CLEAN_UP, f"The record of {submission_id} comes back.")


def _failed(diagnosis: Diagnosis) -> Check:
    lines = f" The last lines: {' / '.join(diagnosis.lines)}" if diagnosis.lines else ""
    says = f"{diagnosis.category}: {diagnosis.cause}{lines}"
    return failed(CheckSubject.PROBE_JOB, says, diagnosis.advice)


class Finding(BaseModel):
    """What the probe found about a subject.

    Attributes:
        error: Why it found nothing, in one line; None if it found something.
        status: The HTTP status behind the error, if there was one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    error: str | None = None
    status: int | None = None


class VersionFinding(Finding):
    """A package.

    Attributes:
        version: Its version.
    """

    version: str = ""


class PythonFinding(VersionFinding):
    """The Python of the job.

    Attributes:
        executable: Its path.
        host: Name of the node.
        time: The node's clock, in seconds since the epoch.
    """

    executable: str = ""
    host: str = ""
    time: float = 0.0


class ApiFinding(Finding):
    """The Prefect API, seen from the job.

    Attributes:
        url: The job's PREFECT_API_URL; None if it has none.
        date: The server's clock, from its answer.
        time: The node's clock at that moment, in seconds since the epoch.
        knows_pool: Whether it has the named work pool; None if none was named.
    """

    url: str | None = None
    date: str | None = None
    time: float = 0.0
    knows_pool: bool | None = None


class RayFinding(VersionFinding):
    """The cluster, as seen by a driver that joined it.

    Attributes:
        nodes: How many are alive.
        on_head: Whether the job runs on the head node.
    """

    nodes: int = 0
    on_head: bool = False


class NodeFinding(Finding):
    """Another node, seen by a task on it.

    Attributes:
        host: Its name; None if there is no other node.
        python: Version of its Python.
        prefect: Version of its Prefect.
    """

    host: str | None = None
    python: str = ""
    prefect: str = ""


class Findings(BaseModel):
    """Everything that the probe found; None for what it did not reach."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    python: PythonFinding | None = None
    driver: VersionFinding | None = None
    prefect: VersionFinding | None = None
    api: ApiFinding | None = None
    ray: RayFinding | None = None
    other_node: NodeFinding | None = None


def read_findings(output: str) -> Findings:
    """Return the findings in a probe's output; other lines in it are ignored."""
    found: dict[str, Any] = {}
    for line in output.splitlines():
        _, mark, said = line.partition(f"{probe.MARK} ")
        if mark:
            try:
                found |= json.loads(said)
            except ValueError:
                continue  # cut off by the job's end
    try:
        return Findings.model_validate(found)
    except ValidationError:
        return Findings()
