"""What a worker tells its work pool, and hears from it: heartbeats, and the events of its runs."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.events import Event
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventRelatedFilter,
    EventResourceFilter,
)
from prefect.events.schemas.events import ResourceSpecification

from prefect_ray_worker.shared.ids import AWAITING_CODE

Change = Literal["scheduled", "cancelling"]

_RUN = "prefect.flow-run."
_CHANGES: dict[str, Change] = {"SCHEDULED": "scheduled", "CANCELLING": "cancelling"}


@dataclass(frozen=True)
class RunChange:
    """A state that a run of the pool has just entered.

    Attributes:
        flow_run_id: The run.
        change: The kind of state.
    """

    flow_run_id: UUID
    change: Change


async def changes_of_runs(pool_id: UUID) -> AsyncGenerator[RunChange | None, None]:
    """Yield the runs of a pool as they are scheduled or cancelled; first None, once connected.

    Changes of the last minute come again after each connection (3.8.8). The generator ends, or
    raises what its socket raises, when the connection ends: then there may be a gap.

    Args:
        pool_id: The work pool.

    Raises:
        Exception: There are no events to be had: they are switched off, a proxy refuses web
            sockets, or the server is away. Prefect documents no narrower type.
    """
    related = f"prefect.work-pool.{pool_id}"
    wanted = EventFilter(
        event=EventNameFilter(prefix=[_RUN]),
        resource=EventResourceFilter(
            labels=ResourceSpecification({"prefect.state-type": list(_CHANGES)})
        ),
        related=EventRelatedFilter(id=[related]),
    )
    async with get_events_subscriber(wanted, reconnection_attempts=0) as subscriber:
        yield None
        async for event in subscriber:
            # A self-hosted server (3.8.8) filters earlier events by what they are related to, and
            # sends new ones of every pool.
            is_of_pool = any(resource.id == related for resource in event.related)
            if is_of_pool and (change := _change_in(event)):
                yield change


def _change_in(event: Event) -> RunChange | None:
    if event.resource.get("prefect.state-name") == AWAITING_CODE:
        return None  # not due: a look now would delay the one that finds it
    kind = _CHANGES.get(event.resource.get("prefect.state-type") or "")
    run_id = event.resource.id.removeprefix(_RUN)
    with suppress(ValueError):
        return RunChange(UUID(run_id), kind) if kind else None
    return None


async def stay_online(client: PrefectClient, pool: str, worker: str, *, every: float) -> None:
    """Send heartbeats until cancelled.

    Prefect sends a single one for a worker with `--run-once` (3.8.8). After three missed ones the
    other workers of the pool take over its runs.

    Args:
        client: Client of the Prefect API.
        pool: Name of the work pool.
        worker: Name of the worker.
        every: Seconds between two heartbeats.
    """
    while True:
        await anyio.sleep(every)
        with suppress(Exception):  # the runs are finished all the same
            await client.send_worker_heartbeat(pool, worker, every)
