"""Submit an attempt's job exactly once, together with our package.

Ray inserts a submission id atomically, so a repeated request with the same id never creates a
second job. After an unclear answer, the worker reads the job back before it decides anything.

The driver must have the worker's version, so the worker uploads this package to the cluster: one
zip in the cluster's own store (`/api/packages/gcs/`), named after its content and listed in each
job's `py_modules`. Ray deletes packages that no job uses, but keeps a package after a request for
it (600 s by default, Ray 2.60). The worker therefore requests the package before each job.
"""

import hashlib
import io
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from uuid import UUID

import anyio
import anyio.to_thread

from prefect_ray_worker import metrics
from prefect_ray_worker.config.runtime_env import can_ship
from prefect_ray_worker.errors import (
    AmbiguousError,
    JobAlreadyExists,
    JobsApiError,
    RayWorkerError,
    RetryableError,
    SubmissionConflict,
)
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.runs.run import RunAttempt
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.timing import DEFAULT_TIMING, Timing
from prefect_ray_worker.shared.backoff import Backoff
from prefect_ray_worker.shared.ids import InfrastructurePid, is_job_of

_PACKAGE = Path(__file__).parents[1]
# The earliest date that a zip can hold. It is fixed so that equal content gives equal bytes.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)

Report = Callable[[str], None]
Prepare = Callable[[JobsClient], Awaitable[None]]


class Disposition(Enum):
    """The result of a submission, as opposed to the job's status or outcome."""

    SUBMITTED = "submitted"
    """Ray accepted the job from this request."""

    ADOPTED = "adopted"
    """Ray already had the job, from an earlier request or from another worker."""

    UNSETTLED = "unsettled"
    """Unknown whether Ray has the job: Ray does not answer. Watch until it does, then ask."""


async def submit_once(
    client: JobsClient,
    request: JobSubmitRequest,
    *,
    flow_run_id: UUID,
    turns: anyio.CapacityLimiter,
    report: Report,
    prepare: Prepare | None = None,
    timing: Timing = DEFAULT_TIMING,
) -> Disposition:
    """Submit a job and return once it is known whether Ray has it, or on timeout.

    1. POST the job. A clear answer decides: submitted or rejected.
    2. After "already exists" or an unclear answer, read the job back. If it exists and is ours, it
       is adopted. Otherwise POST the same id again: only Ray's own answer about the job decides.

    Args:
        client: The cluster.
        request: The job. Its id makes repeated requests safe.
        flow_run_id: The run; identifies the job as ours.
        turns: Limits concurrent submissions to the cluster. Waiting for a turn does not count
            against `timing.submit_patience`.
        report: Called with a message for the user when the first attempt fails.
        prepare: Called before each POST. Its failure is treated as a failure of the POST.
        timing: How long to keep trying a cluster that does not answer.

    Returns:
        The result; `UNSETTLED` if the time is up and Ray may have the job.

    Raises:
        SubmissionConflict: A foreign job has the id.
        JobsApiError: Ray definitely did not accept the job; the message says why.
    """
    submission = _Submission(client, request, flow_run_id, prepare)
    backoff = Backoff(initial=timing.first_pause)
    patience = timing.submit_patience
    reported = False
    while patience > 0:
        async with turns:
            began = anyio.current_time()
            settled, trouble = Disposition.UNSETTLED, None
            with anyio.move_on_after(patience):
                settled, trouble = await submission.attempt()
            if trouble is None:
                return settled
            took = anyio.current_time() - began
        if not submission.may_have_arrived and not isinstance(trouble, RetryableError):
            raise trouble
        if not reported:
            report(f"Ray has not confirmed the job yet, trying again: {trouble}")
            reported = True
        delay = backoff.next()
        patience -= took + delay
        # Assume that another attempt takes little longer than this one. If it were cut short, we
        # would no longer know that Ray does not have the job.
        if not submission.may_have_arrived and patience < 1.5 * took:
            raise trouble
        await anyio.sleep(delay)
    return Disposition.UNSETTLED


@dataclass
class _Submission:
    client: JobsClient
    request: JobSubmitRequest
    flow_run_id: UUID
    prepare: Prepare | None
    # Once true, only Ray's own answer about the job settles whether it exists.
    may_have_arrived: bool = False

    async def attempt(self) -> tuple[Disposition, JobsApiError | None]:
        """Post the job once; return the disposition, and the error if it is unsettled."""
        trouble = await _trouble_of(self._post())
        if trouble is None:
            return Disposition.SUBMITTED, None
        self.may_have_arrived |= isinstance(trouble, AmbiguousError | JobAlreadyExists)
        if self.may_have_arrived:
            unread = await _trouble_of(self._expect_ours())
            if unread is None:
                return Disposition.ADOPTED, None
            if isinstance(trouble, JobAlreadyExists):
                trouble = unread
        return Disposition.UNSETTLED, trouble

    async def _post(self) -> None:
        if self.prepare is not None:
            await self.prepare(self.client)
        await self.client.submit(self.request)

    async def _expect_ours(self) -> None:
        details = await self.client.get(self.request.submission_id)
        if not is_job_of(self.flow_run_id, details.metadata):
            raise SubmissionConflict(
                f"{self.client.connection.address} has a job {self.request.submission_id} that "
                "belongs to something else. Find out who submits jobs under our names (its "
                "metadata is in the dashboard), remove it and run the flow again."
            )


async def _trouble_of(action: Awaitable[None]) -> JobsApiError | None:
    """Await an action; return the `JobsApiError` that it raised, or None."""
    try:
        await action
    except JobsApiError as exc:
        return exc
    return None


class Submitter:
    """Submits the job of one attempt.

    Attributes:
        session: The cluster's session when it accepted the job, if the cluster reports one.
        submitted_at: When this process first submitted the job, in `anyio.current_time` seconds.

    Args:
        services: Services that the worker's runs share.
        attempt: The attempt.
        pid: Location of the job if an earlier worker submitted it.
    """

    def __init__(
        self, services: Services, attempt: RunAttempt, pid: InfrastructurePid | None = None
    ) -> None:
        self._services = services
        self._attempt = attempt
        self._ships = services.ship_driver and can_ship(attempt.configuration.runtime_env)
        self._request: JobSubmitRequest | None = None
        self._disposition = Disposition.UNSETTLED if pid is None else Disposition.ADOPTED
        self.session = pid.session_name if pid is not None else None
        self.submitted_at: float | None = None

    @property
    def has_arrived(self) -> bool:
        """True once we know that Ray accepted the job."""
        return self._disposition is not Disposition.UNSETTLED

    @property
    def was_there(self) -> bool:
        """True if an earlier request or another worker submitted the job."""
        return self._disposition is Disposition.ADOPTED

    @property
    def is_first(self) -> bool:
        """True if Ray took the job from this process, so that no other can have followed it yet."""
        return self._disposition is Disposition.SUBMITTED

    async def submit(self) -> InfrastructurePid:
        """Submit the job unless Ray already has it; return its location.

        Raises:
            InvalidConfiguration: The configuration cannot form a request; nothing was sent.
            JobsApiError: Ray definitely did not accept the job.
            SubmissionConflict: A foreign job has our id.
        """
        attempt = self._attempt
        if self._request is None:
            self._request = attempt.configuration.submission_request(
                attempt.job_id,
                package=await archive_uri() if self._ships else None,
                delivery=self._services.delivery,
            )
        self.session = self.session or await self._session_name()
        try:
            # A cluster that does not answer is asked for as long as the start may take.
            with attempt.cluster.use.going_on():
                self._disposition = await submit_once(
                    attempt.cluster.client,
                    self._request,
                    flow_run_id=attempt.run_id,
                    turns=attempt.cluster.submissions,
                    report=attempt.log.warning,
                    prepare=self._prepare,
                    timing=self._services.timing,
                )
        except RayWorkerError:
            metrics.SUBMISSIONS.labels("refused").inc()
            raise
        metrics.SUBMISSIONS.labels(self._disposition.value).inc()
        match self._disposition:
            case Disposition.SUBMITTED:
                said = "submitted"
            case Disposition.ADOPTED:
                said = "was already there; watching it"
            case Disposition.UNSETTLED:
                said = "may have been taken by a cluster that does not answer; watching for it"
        # The only log line that names the job: the page's address ends with the job id.
        if attempt.dashboard_page is not None:
            attempt.log.info("Ray Job %s. Dashboard: %s", said, attempt.dashboard_page)
        else:
            attempt.log.info("Ray Job %s %s, on %s.", attempt.job_id, said, attempt.cluster.ref)
        return InfrastructurePid(attempt.cluster.ref, attempt.job_id, self.session)

    async def _prepare(self, client: JobsClient) -> None:
        self.submitted_at = self.submitted_at or anyio.current_time()
        if self._ships:
            await ensure_shipped(client)

    async def _session_name(self) -> str | None:
        try:
            return (await self._attempt.cluster.client.version()).session_name
        except JobsApiError:
            return None  # the submission itself reports the error


async def archive_uri() -> str:
    """Return the package's URI in a cluster's store, whether or not it is uploaded yet."""
    name, _ = await anyio.to_thread.run_sync(_archive)
    return f"gcs://{name}"


async def ensure_shipped(client: JobsClient) -> None:
    """Upload the package to a cluster if needed, and keep it there until the next submission.

    Raises:
        JobsApiError: The cluster did not answer, or rejected the package.
    """
    name, content = await anyio.to_thread.run_sync(_archive)
    if not await client.has_package(name):
        await client.put_package(name, content)


@cache
def _archive() -> tuple[str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(_PACKAGE.rglob("*")):
            if path.suffix == ".py" or path.name == "py.typed":
                entry = zipfile.ZipInfo(str(path.relative_to(_PACKAGE.parent)), _TIMESTAMP)
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    content = buffer.getvalue()
    return f"_ray_pkg_{hashlib.sha256(content).hexdigest()}.zip", content
