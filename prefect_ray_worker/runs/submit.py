"""Submit a job exactly once, and settle what an unclear answer meant before anyone decides.

Ray inserts a submission id atomically, so asking again with the same id makes no second job.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

import anyio

from prefect_ray_worker.errors import (
    AmbiguousError,
    JobAlreadyExists,
    JobsApiError,
    RetryableError,
    SubmissionConflict,
)
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.shared.backoff import Backoff
from prefect_ray_worker.shared.ids import is_job_of

DEFAULT_PATIENCE_SECONDS = 60.0

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
    patience: float = DEFAULT_PATIENCE_SECONDS,
    report: Report,
    prepare: Prepare | None = None,
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
        patience: Seconds to go on trying a cluster that does not answer.
        report: Called with a line for the user when the first attempt fails.
        prepare: Done before each POST; its failure counts as the POST's.

    Raises:
        SubmissionConflict: A foreign job has the id.
        JobsApiError: It is settled that Ray did not take the job; the message says why.
    """
    submission = _Submission(client, request, flow_run_id, prepare)
    backoff = Backoff()
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
