"""`Submitter`: makes an attempt's job, exactly once, and knows how sure that is."""

import anyio

from prefect_ray_worker import metrics
from prefect_ray_worker.config.runtime_env import can_ship
from prefect_ray_worker.errors import JobsApiError, RayWorkerError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.runs.run import Attempt
from prefect_ray_worker.runs.shipping import archive_uri, ensure_shipped
from prefect_ray_worker.runs.submit import Disposition, submit_once
from prefect_ray_worker.shared.ids import InfrastructurePid


class Submitter:
    """Makes the job of one attempt.

    Attributes:
        session: Session of the cluster when it took the job, where the cluster says so.
        submitted_at: When this process first submitted it, on `anyio.current_time`'s clock.

    Args:
        attempt: The attempt.
        pid: Where its job is, if an earlier worker has submitted it.
    """

    def __init__(self, attempt: Attempt, pid: InfrastructurePid | None = None) -> None:
        self._attempt = attempt
        self._ships = attempt.around.ship_driver and can_ship(attempt.configuration.runtime_env)
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
                delivery=attempt.around.delivery,
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
        attempt.log.info(
            "Ray Job %s %s. Dashboard: %s", attempt.job_id, said, attempt.dashboard_page
        )
        return InfrastructurePid(attempt.address, attempt.job_id, self.session)

    async def _prepare(self, client: JobsClient) -> None:
        self.submitted_at = self.submitted_at or anyio.current_time()
        if self._ships:
            await ensure_shipped(client)

    async def _session_name(self) -> str | None:
        try:
            return (await self._attempt.cluster.client.version()).session_name
        except JobsApiError:
            return None  # the submission itself will say what is wrong
