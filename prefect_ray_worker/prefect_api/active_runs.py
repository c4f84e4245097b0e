"""`ActiveRun`: a run of a pool that goes on, with no more of it than a look at all of them needs.

Prefect's own model of a flow run takes half a millisecond to build: for a thousand runs, every few
seconds, that would be the most expensive thing that a worker does.
"""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    Operator,
    WorkPoolFilter,
    WorkPoolFilterId,
)
from prefect.client.schemas.objects import TERMINAL_STATES, StateType

from prefect_ray_worker.prefect_api.pages import pages
from prefect_ray_worker.shared.run_rules import pauses_in_process, waits_in_process

GOES_ON = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
"""The states of a run that an attempt has begun on and not ended."""

ENDED_BADLY = (StateType.CRASHED, StateType.FAILED)
"""The states of a run that ended without success: somebody may want to look at its cluster."""

_SETTLED = (
    StateType.COMPLETED,
    StateType.FAILED,
    StateType.CRASHED,
    StateType.CANCELLED,
    StateType.SCHEDULED,
)
# The message of the state in which the server leaves Cancelling when it has waited for too long,
# by default for 300 s (`services/cancellation_cleanup.py`, 3.8.8). Nothing else marks that state.
_CANCELLING_TIMEOUT = "Flow run cancellation timed out; marked this flow run as Cancelled."
# How many ids go into one question.
_IDS_AT_ONCE = 200
# The same, where few runs are found: 40 KB, and a ms for the server's database.
_IDS_FOR_FEW = 1000


@dataclass(frozen=True)
class ActiveRun:
    """A run that an attempt has begun on and not ended.

    Attributes:
        id: The flow run.
        state: The type of its state; Running for one that waits, or is paused, in its process.
        state_id: The id of its state.
        state_name: The name of its state.
        since: When it came into that state, on the clock of the Prefect server.
        labels: Its labels.
        queue: The name of its work queue.
        infrastructure_pid: Where its job is, or an earlier attempt's was.
    """

    id: UUID
    state: StateType
    state_id: UUID
    state_name: str
    since: datetime
    labels: dict[str, object]
    queue: str | None
    infrastructure_pid: str | None

    @property
    def age(self) -> float:
        """Seconds since it came into its state."""
        return (datetime.now(UTC) - self.since).total_seconds()


def goes_on() -> FlowRunFilterState:
    """Return the filter for the runs that go on; it also finds some that do not."""
    # Validated, because type checkers do not see the operator, which comes from a mixin.
    return FlowRunFilterState.model_validate(
        {
            "operator": Operator.or_,
            "type": FlowRunFilterStateType(any_=[*GOES_ON, StateType.PAUSED]),
            "name": FlowRunFilterStateName(any_=["AwaitingRetry"]),
        }
    )


async def active_runs(client: PrefectClient, work_pool_id: UUID) -> dict[UUID, ActiveRun]:
    """Return the runs of a work pool that go on; see `QueuelessRuns` for those that are lost.

    Args:
        client: An open client.
        work_pool_id: The pool.
    """
    found: dict[UUID, ActiveRun] = {}
    async for page in _filtered(client, work_pool_id, FlowRunFilter(state=goes_on())):
        # Page by page: for a thousand runs at once, the event loop would stand still.
        runs = [_run_of(record) for record in page]
        found |= {run.id: run for run in runs if run is not None and run.state in GOES_ON}
    return found


async def ended_runs(
    client: PrefectClient, work_pool_id: UUID, since: datetime
) -> dict[UUID, ActiveRun]:
    """Return the runs of a work pool that have ended since a moment.

    Args:
        client: An open client.
        work_pool_id: The pool.
        since: The moment, on the clock of the Prefect server.
    """
    filters = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES))),
        end_time=FlowRunFilterEndTime.model_validate({"after_": since}),
    )
    found: dict[UUID, ActiveRun] = {}
    async for page in _filtered(client, work_pool_id, filters):
        runs = [_run_of(record) for record in page]
        found |= {run.id: run for run in runs if run is not None}
    return found


async def runs_by_id(client: PrefectClient, run_ids: Collection[UUID]) -> dict[UUID, ActiveRun]:
    """Return some runs, in whatever state they are; those that were deleted are left out.

    Args:
        client: An open client.
        run_ids: The runs.
    """
    ids = [str(run_id) for run_id in run_ids]
    found: dict[UUID, ActiveRun] = {}
    for start in range(0, len(ids), _IDS_AT_ONCE):
        chosen = ids[start : start + _IDS_AT_ONCE]
        body = {"flow_runs": {"id": {"any_": chosen}}}
        async for page in _pages(client, body, at_most=len(chosen)):
            runs = [_run_of(record) for record in page]
            found |= {run.id: run for run in runs if run is not None}
    return found


async def cancelling_runs(client: PrefectClient, run_ids: Collection[UUID]) -> set[UUID]:
    """Return which of some runs are being cancelled, even if the server has given up on that.

    Args:
        client: An open client.
        run_ids: The runs. Their pool does not find them any more once their queue is deleted.
    """
    found: set[UUID] = set()
    types = (StateType.CANCELLING, StateType.CANCELLED)
    async for page in _in_state(client, run_ids, types, _IDS_FOR_FEW):
        found |= {UUID(record["id"]) for record in page if _is_cancelling(record["state"])}
    return found


def is_cancelling_timeout(state: StateType, message: str | None) -> bool:
    """Return whether the server has set a state because a run was Cancelling for too long.

    The run's `stop_grace_seconds` can be longer: its driver may still end by itself.

    Args:
        state: The type of the state.
        message: Its message.
    """
    return state == StateType.CANCELLED and message == _CANCELLING_TIMEOUT


def _is_cancelling(state: dict[str, Any]) -> bool:
    type_ = StateType(state["type"])
    return type_ == StateType.CANCELLING or is_cancelling_timeout(type_, state.get("message"))


async def not_pending(client: PrefectClient, run_ids: Collection[UUID]) -> set[UUID]:
    """Return which of some runs are not Pending any more, or were deleted.

    Args:
        client: An open client.
        run_ids: The runs.
    """
    found = await runs_by_id(client, run_ids)
    pending = {run.id for run in found.values() if run.state == StateType.PENDING}
    return set(run_ids) - pending


async def settled_runs(client: PrefectClient, run_ids: Collection[UUID]) -> dict[UUID, bool]:
    """Return which of some runs have ended, or were scheduled again, and whether from outside.

    From outside is by the UI, an automation or another client of the HTTP API. Prefect's own Python
    client gives each state that it proposes a `transition_id` (3.8.8), and with it flow engines,
    drivers, workers and scripts do; such a state may be the driver's own, whose hooks still run.
    The server's own cancelling timeout is not from outside: see `is_cancelling_timeout`.

    Args:
        client: An open client.
        run_ids: The runs.
    """
    found: dict[UUID, bool] = {}
    async for page in _in_state(client, run_ids, _SETTLED, _IDS_AT_ONCE):
        settled_ones = (record for record in page if _is_settled(record))
        found |= {UUID(record["id"]): _is_from_outside(record) for record in settled_ones}
    return found


def _is_settled(record: dict[str, Any]) -> bool:
    state, policy = record["state"] or {}, record.get("empirical_policy") or {}
    return type_in_effect(StateType(state["type"]), policy.get("retry_type")) in _SETTLED


def _is_from_outside(record: dict[str, Any]) -> bool:
    state = record["state"]
    details = state.get("state_details") or {}
    return details.get("transition_id") is None and not _is_cancelling(state)


def type_in_effect(
    state: StateType, retry_type: str | None, pause_reschedule: bool | None = None
) -> StateType:
    """Return the type of a run's state; Running for one that waits, or is paused, in its process.

    Args:
        state: The type that Prefect gives it.
        retry_type: Of the run's empirical policy.
        pause_reschedule: Of the state's details.
    """
    waits = waits_in_process(state, retry_type) or pauses_in_process(state, pause_reschedule)
    return StateType.RUNNING if waits else state


def _run_of(record: dict[str, Any]) -> ActiveRun | None:
    state = record["state"]
    if state is None:
        return None
    retry_type = (record.get("empirical_policy") or {}).get("retry_type")
    reschedule = (state.get("state_details") or {}).get("pause_reschedule")
    return ActiveRun(
        id=UUID(record["id"]),
        state=type_in_effect(StateType(state["type"]), retry_type, reschedule),
        state_id=UUID(state["id"]),
        state_name=state["name"] or "",
        since=datetime.fromisoformat(state["timestamp"]),
        labels=record.get("labels") or {},
        queue=record.get("work_queue_name"),
        infrastructure_pid=record.get("infrastructure_pid"),
    )


async def _in_state(
    client: PrefectClient, run_ids: Collection[UUID], types: Collection[StateType], at_once: int
) -> AsyncIterator[list[dict[str, Any]]]:
    ids = [str(run_id) for run_id in run_ids]
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
    wanted = state.model_dump(mode="json", exclude_unset=True)
    for start in range(0, len(ids), at_once):
        chosen = {"id": {"any_": ids[start : start + at_once]}, "state": wanted}
        async for page in _pages(client, {"flow_runs": chosen}):
            yield page


async def _filtered(
    client: PrefectClient, work_pool_id: UUID, filters: FlowRunFilter
) -> AsyncIterator[list[dict[str, Any]]]:
    pool = WorkPoolFilter(id=WorkPoolFilterId(any_=[work_pool_id]))
    body = {
        "flow_runs": filters.model_dump(mode="json", exclude_unset=True),
        "work_pools": pool.model_dump(mode="json"),
    }
    async for page in _pages(client, body):
        yield page


def _pages(
    client: PrefectClient, body: dict[str, Any], *, at_most: int | None = None
) -> AsyncIterator[list[dict[str, Any]]]:
    async def ask(asked: dict[str, Any]) -> list[dict[str, Any]]:
        return (await client.request("POST", "/flow_runs/filter", json=asked)).json()

    return pages(ask, body, at_most=at_most)
