"""Submit an attempt's job exactly once, together with our package.

Ray inserts a submission id atomically, so asking again with the same id makes no second job. An
unclear answer is settled by reading the job back before anyone decides.

The driver must be of the worker's version, so the worker brings this package to the cluster: one
zip in the cluster's own store (`/api/packages/gcs/`), named after its content and listed in each
job's `py_modules`. Ray drops a package that no job uses, and keeps one that was just asked for
(600 s by default, Ray 2.60): so we ask for it before each job.
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
# The earliest date that a zip can hold: equal content must give equal bytes.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)

Report = Callable[[str], None]
Prepare = Callable[[JobsClient], Awaitable[None]]


class Disposition(Enum):
    """What became of a submission. Not the job's status, and not its outcome."""

    SUBMITTED = "submitted"
    """Ray took the job from this very request."""

    ADOPTED = "adopted"
    """Ray had the job already: an earlier request, or another worker's, has made it."""

    UNSETTLED = "unsettled"
    """Ray may or may not have it, and cannot be asked now. Watch, and ask when it answers."""


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
    """Submit a job, and return only when it is clear whether Ray has it, or cannot be clear.

    1. POST. An answer settles it: submitted, or refused.
    2. "Already exists", or an unclear answer: read the job back. Found and ours: adopted.
       Otherwise POST the same id again, whatever anyone but Ray says meanwhile.

    Args:
        client: The cluster.
        request: The job; its id makes repeating it safe.
        flow_run_id: The run, to recognise a job as ours.
        turns: Lets so many submissions to the cluster through at once. The wait for a turn is
            not the cluster's fault, and takes nothing from its patience.
        report: Called with a line for the user when the first attempt fails.
        prepare: Done before each POST; its failure counts as the POST's.
        timing: How long to go on trying a cluster that does not answer.

    Raises:
        SubmissionConflict: A foreign job has the id.
        JobsApiError: It is settled that Ray did not take the job; the message says why.
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
        # Another attempt will take as long as this one. Cut short, it would leave in doubt
        # what is clear now: that Ray does not have the job.
        if not submission.may_have_arrived and patience < took:
            raise trouble
        await anyio.sleep(delay)
    return Disposition.UNSETTLED


@dataclass
class _Submission:
    client: JobsClient
    request: JobSubmitRequest
    flow_run_id: UUID
    prepare: Prepare | None
    # Once a request may have arrived, no later answer but Ray's own about the job takes that back.
    may_have_arrived: bool = False

    async def attempt(self) -> tuple[Disposition, JobsApiError | None]:
        """Post the job once; return what that settles, or what is in the way."""
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
    """Run an action; return what kept it from telling, if anything did."""
    try:
        await action
    except JobsApiError as exc:
        return exc
    return None


class Submitter:
    """Makes the job of one attempt.

    Attributes:
        session: Session of the cluster when it took the job, where the cluster says so.
        submitted_at: When this process first submitted it, on `anyio.current_time`'s clock.

    Args:
        services: What the worker's runs share.
        attempt: The attempt.
        pid: Where its job is, if an earlier worker has submitted it.
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
        """Whether the cluster certainly has, or had, the job."""
        return self._disposition is not Disposition.UNSETTLED

    @property
    def was_there(self) -> bool:
        """Whether somebody has submitted the job before this process."""
        return self._disposition is Disposition.ADOPTED

    async def submit(self) -> InfrastructurePid:
        """Submit the job, or find out that Ray has it; say where it is.

        Raises:
            InvalidConfiguration: The job cannot be expressed; nothing was sent.
            JobsApiError: It is settled that Ray did not take the job.
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
        # The one line that names the job: the page's address ends with its id.
        attempt.log.info("Ray Job %s. Dashboard: %s", said, attempt.dashboard_page)
        return InfrastructurePid(attempt.cluster.ref, attempt.job_id, self.session)

    async def _prepare(self, client: JobsClient) -> None:
        self.submitted_at = self.submitted_at or anyio.current_time()
        if self._ships:
            await ensure_shipped(client)

    async def _session_name(self) -> str | None:
        try:
            return (await self._attempt.cluster.client.version()).session_name
        except JobsApiError:
            return None  # the submission itself will say what is wrong


async def archive_uri() -> str:
    """Return the URI under which the package is, or will be, in a cluster's store."""
    name, _ = await anyio.to_thread.run_sync(_archive)
    return f"gcs://{name}"


async def ensure_shipped(client: JobsClient) -> None:
    """See to it that a cluster has the package, and keeps it until the next submission.

    Raises:
        JobsApiError: The cluster could not be asked, or did not take it.
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
