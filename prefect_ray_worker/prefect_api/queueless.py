"""`QueuelessRuns`: finds active runs of a pool that Prefect's own list of the pool has lost.

If a work queue is deleted, alone or with its pool, its runs go on and name no queue (3.8.8). The
server finds the pool of a run through its queue, so no filter finds them. Prefect's worker writes
the pool on each run that it submits, as labels, and no filter reads labels.
"""

import math
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient

from prefect_ray_worker.prefect_api.active_runs import GOES_ON, ActiveRun, goes_on, runs_by_id
from prefect_ray_worker.prefect_api.pages import pages
from prefect_ray_worker.shared.backoff import jittered

# To list 10,000 active runs, those of all pools, takes a Prefect server 4 s (3.8.8, SQLite).
# With its jitter, and half a heartbeat until the next look, such a run is found in ten minutes.
_INTERVAL_SECONDS = 480.0
_AT_MOST = 10_000
# Labels of Prefect's worker (3.8.8).
_POOL_ID, _POOL_NAME = "prefect.work-pool.id", "prefect.work-pool.name"
_TYPE, _RAY = "prefect.worker.type", "ray"


class QueuelessRuns:
    """Remembers the active runs of a pool whose queue was deleted; looks for more now and then.

    Args:
        client: An open client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._turn = anyio.Lock()
        self._pool: tuple[UUID, str] | None = None
        self._due = -math.inf
        self._known: set[UUID] = set()

    async def active(self, work_pool_id: UUID, work_pool_name: str) -> dict[UUID, ActiveRun]:
        """Return the runs that go on; one whose queue was just deleted can be missing at first.

        Args:
            work_pool_id: The pool.
            work_pool_name: Its name. The runs of an earlier pool of that name are this one's.
        """
        pool = (work_pool_id, work_pool_name)
        async with self._turn:
            if pool != self._pool or anyio.current_time() >= self._due:
                self._known = await _listed(self._client, *pool)
                self._pool = pool
                self._due = anyio.current_time() + jittered(_INTERVAL_SECONDS)
            if not self._known:
                return {}
            runs = await runs_by_id(self._client, self._known)
            found = {run.id: run for run in runs.values() if run.state in GOES_ON}
            self._known = set(found)
            return found


async def _listed(client: PrefectClient, pool_id: UUID, pool_name: str) -> set[UUID]:
    """Return the runs whose labels name the pool and which have no queue."""
    found: set[UUID] = set()
    # Those of deployments, then those without one; the latter have a queue, and no name of it.
    for has_no_name in (False, True):
        body = {
            "flow_runs": {
                "state": goes_on().model_dump(mode="json", exclude_unset=True),
                "work_queue_name": {"is_null_": has_no_name},
            }
        }
        if await _all_have_a_queue(client, body):
            continue
        async for page in _pages(client, body):
            found |= {UUID(record["id"]) for record in page if _is_lost(record, pool_id, pool_name)}
    return found


def _is_lost(record: dict[str, Any], pool_id: UUID, pool_name: str) -> bool:
    labels = record.get("labels") or {}
    # An earlier pool of the name may have been of another type.
    is_ours = labels.get(_TYPE) == _RAY and (
        labels.get(_POOL_ID) == str(pool_id) or labels.get(_POOL_NAME) == pool_name
    )
    return is_ours and record.get("work_queue_id") is None


async def _all_have_a_queue(client: PrefectClient, body: dict[str, Any]) -> bool:
    """Compare two counts, which cost the server little: the list is rarely needed."""
    count = await client.request("POST", "/flow_runs/count", json=body)
    # Any pool.
    in_pools = await client.request("POST", "/flow_runs/count", json={**body, "work_pools": {}})
    return count.json() <= in_pools.json()


def _pages(client: PrefectClient, body: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
    async def ask(asked: dict[str, Any]) -> list[dict[str, Any]]:
        return (await client.request("POST", "/flow_runs/filter", json=asked)).json()

    return pages(ask, body, at_most=_AT_MOST)
