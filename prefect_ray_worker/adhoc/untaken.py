"""`Untaken`: tells a caller why its run does not begin."""

import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from prefect_ray_worker.prefect_api.due_runs import why_not_taken
from prefect_ray_worker.shared.ids import AWAITING_CODE

# An idle worker takes a run within its poll, 10 s by default; Prefect misses a dead one after 90 s.
_PATIENCE_SECONDS = 20.0
_BETWEEN_LOOKS_SECONDS = 20.0
_LOST = (
    "Its work pool or work queue was deleted, so no worker is given it. Cancel the call, and call "
    "the flow again."
)


class Untaken:
    """Looks at the pool of a run that has been due for a while, and says what is new.

    A call is refused where the pool is paused or has no worker; that can also come later.
    """

    def __init__(self) -> None:
        self._pool: str | None = None
        self._queue: str | None = None
        self._state: UUID | None = None
        self._next_look = 0.0
        self._said: str | None = None

    def news(self, client: SyncPrefectClient, run: FlowRun) -> str | None:
        """Return why no worker takes the run, once for each reason.

        Args:
            client: An open client.
            run: The run as it is now.
        """
        state = run.state
        if run.work_pool_name:  # a run that lost its pool has none
            self._pool, self._queue = run.work_pool_name, run.work_queue_name
        if state is None or not _is_due(state):
            return None
        if state.id != self._state:
            self._state, self._next_look = state.id, time.monotonic() + _PATIENCE_SECONDS
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + _BETWEEN_LOOKS_SECONDS
        why = self._why(client, run, state)
        if why is None or why == self._said:
            return None
        self._said = why
        return f"No worker has taken the flow run {run.name!r} yet. Why: {why}"

    def _why(self, client: SyncPrefectClient, run: FlowRun, state: State[Any]) -> str | None:
        pool_name = self._pool
        if pool_name is None:
            return _LOST
        try:
            pool = client.read_work_pool(pool_name)
            workers = client.read_workers_for_work_pool(pool_name)
            queues = client.read_work_queues(work_pool_name=pool_name)
        except ObjectNotFound:
            return f"The work pool {pool_name!r} does not exist any more. Cancel the call."
        except (PrefectHTTPStatusError, httpx.HTTPError):
            return None  # it is asked again
        if run.work_queue_id is None:  # a new pool of the same name does not change that
            return _LOST
        queue = next((queue for queue in queues if queue.name == self._queue), None)
        has_worker = any(worker.status == WorkerStatus.ONLINE for worker in workers)
        return why_not_taken(state.name, state.message, pool, queue, has_worker=has_worker)


def _is_due(state: State[Any]) -> bool:
    if state.type != StateType.SCHEDULED or state.name == AWAITING_CODE:
        return False
    when = state.state_details.scheduled_time
    return when is None or when <= datetime.now(UTC)
