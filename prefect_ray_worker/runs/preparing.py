"""`Preparing`: ends the wait of claimed runs that are cancelled or settled before their submission.

A worker waits for up to an hour for what Prefect has to say about a run that it has claimed. One
request can fail for long while the API answers all others, for example for a block that another
server has encrypted.
"""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID

import anyio
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun

from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.shared.ids import submission_id

# Most runs are prepared within this time, and cost no request here.
_USUAL_SECONDS = 2.0
_LOOK_SECONDS = 0.5


class Preparing:
    """Looks after the runs of a worker between their claim and their submission.

    Args:
        services: What the worker's runs share.
        followed: Knows the claims of this process.
    """

    def __init__(self, services: Services, followed: FollowedRuns) -> None:
        self._services = services
        self._followed = followed
        self._scopes: dict[UUID, anyio.CancelScope] = {}

    @contextmanager
    def until_begun(
        self, flow_run: FlowRun, task_status: TaskStatus[Any] | None
    ) -> Generator[None, None, None]:
        """Leave the context early if the run is over, or being cancelled, before `begun`.

        Args:
            flow_run: The run.
            task_status: What Prefect waits for; it is told then, if it has not been.
        """
        run_id, claim_id = flow_run.id, self._followed.claim_of(flow_run.id)
        with anyio.CancelScope() as scope:
            if claim_id is not None:
                self._scopes[run_id] = scope
                watch = partial(self._watch, run_id, submission_id(run_id, claim_id), scope)
                self._services.in_background(watch, f"ray-preparing {run_id}")
            try:
                yield
            finally:
                self._forget(run_id, scope)
        if scope.cancelled_caught and task_status is not None:
            with suppress(RuntimeError):  # told already that it failed, and so about to be Crashed
                task_status.started(None)

    def begun(self, run_id: UUID) -> None:
        """Note that a run is prepared: what submits it looks after it."""
        self._scopes.pop(run_id, None)

    async def _watch(self, run_id: UUID, job_id: str, scope: anyio.CancelScope) -> None:
        await anyio.sleep(_USUAL_SECONDS)
        watched = (self._services.cancelling, self._services.unsubmitted)
        with watched[0].attended(run_id), watched[1].attended(run_id):
            while self._scopes.get(run_id) is scope:
                if any(run_id in runs for runs in watched):
                    break
                await anyio.sleep(_LOOK_SECONDS)
            else:
                return
        self._forget(run_id, scope)
        scope.cancel()
        if await self._services.lease.is_free(run_id, job_id):
            message = "Cancelled before the run was submitted to Ray."
            await self._services.flow_runs.cancelled(run_id, message)

    def _forget(self, run_id: UUID, scope: anyio.CancelScope) -> None:
        if self._scopes.get(run_id) is scope:
            del self._scopes[run_id]
