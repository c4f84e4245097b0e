"""`Lease`: tells whether this process may still act on an attempt, at no cost as a rule.

It grants nothing: who follows a run is decided in `recovery/reconcile` and `recovery/ownership`.
"""

import math
from collections.abc import Container
from uuid import UUID

import anyio

from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.recovery.labels import owner_in
from prefect_ray_worker.shared.ids import attempt_in


class Lease:
    """Tells whether this process still owns an attempt that it follows.

    Recovery renews the lease with each look at the pool's runs. While it is fresh, an answer
    costs nothing. A process that was frozen has no fresh lease: it asks Prefect, because another
    worker may have taken over its runs.

    Args:
        instance: This process, as the runs' owner labels name it.
        flow_runs: The Prefect side.
        followed: The submission ids that this process submits or follows.
        seconds: How long a renewal lasts.
    """

    def __init__(
        self, instance: str, flow_runs: FlowRuns, followed: Container[str], *, seconds: float
    ) -> None:
        self._instance = instance
        self._flow_runs = flow_runs
        self._followed = followed
        self._seconds = seconds
        self._renewed_at = -math.inf

    def renew(self, looked_at: float) -> None:
        """Extend the lease: this process has dropped the runs that other workers own.

        Args:
            looked_at: When the look at the pool's runs began, by `anyio.current_time`.
        """
        self._renewed_at = looked_at

    async def holds(self, flow_run_id: UUID, submission_id: str) -> bool:
        """Return whether an attempt is still this process's own to act on.

        Ask this before anything that two workers must not both do.

        Args:
            flow_run_id: The run.
            submission_id: The job of the attempt.
        """
        if anyio.current_time() - self._renewed_at < self._seconds:
            return submission_id in self._followed
        run = await self._flow_runs.read(flow_run_id)
        if run is None:
            return False
        owner = owner_in(run.labels, attempt_in(submission_id))
        return owner.instance in (None, self._instance)
