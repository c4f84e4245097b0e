"""What we ask and tell Prefect about flow runs, patiently: an API that is down loses nothing."""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State, StateType, WorkerStatus
from prefect.client.schemas.sorting import LogSort
from prefect.events import Event
from prefect.events.filters import EventFilter, EventOccurredFilter, EventResourceFilter
from prefect.exceptions import Abort, ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Crashed, Scheduled
from prefect.utilities.engine import propose_state

from prefect_ray_worker.prefect_api.active_runs import (
    GOES_ON,
    ActiveRun,
    active_runs,
    ended_runs,
    runs_by_id,
    type_in_effect,
)
from prefect_ray_worker.prefect_api.answers import wait_for_answer
from prefect_ray_worker.prefect_api.children import Ending, end_children
from prefect_ray_worker.prefect_api.due_runs import policy_for_workers
from prefect_ray_worker.prefect_api.links import Link, put_link
from prefect_ray_worker.prefect_api.queueless import QueuelessRuns
from prefect_ray_worker.shared.ids import INFRASTRUCTURE_RETRY, is_claim, present_claim

T = TypeVar("T")

# Of the 16 sockets of Prefect's client. What waits for a socket in its pool costs time that grows
# with the square of the queue (httpcore 1.0): a thousand runs that start at once stood still.
_REQUESTS_AT_ONCE = 12
# The server refuses more, and the client's own default as well (3.8.8).
_PAGE_OF_EVENTS = 50

INFRASTRUCTURE_PENDING = "InfrastructurePending"
"""Name of the Pending state of a run whose job has not started: Prefect's own."""
DEPLOYMENT_SLOT_LOST = "DeploymentSlotLost"
"""Name of the Pending state of a run that has lost its slot of the deployment's limit."""
# Names of the Pending states of a run whose flow has not begun; a later one replaces those before.
# The server gives the first with the claim, Prefect's worker the second as it submits (3.8.8).
_NOT_BEGUN = ("Pending", "Submitting", INFRASTRUCTURE_PENDING, DEPLOYMENT_SLOT_LOST)

_log = logging.getLogger("prefect.workers.ray.flow_runs")


class FlowRuns:
    """The flow runs of a worker, as the Prefect API has them.

    Methods wait out an API that does not answer, answers 5xx or is asked too often, for up to
    an hour; a run that has been deleted is answered with None or ignored.

    Args:
        client: An open Prefect client.
        first_wait: Seconds until a failed request is sent again for the first time.
    """

    def __init__(self, client: PrefectClient, *, first_wait: float = 1.0) -> None:
        self._client = client
        self._first_wait = first_wait
        self._queueless = QueuelessRuns(client)
        self._requests = anyio.CapacityLimiter(_REQUESTS_AT_ONCE)

    async def read(self, flow_run_id: UUID) -> FlowRun | None:
        """Return the run as it is now, or None if it has been deleted."""
        try:
            return await self._patiently(lambda: self._client.read_flow_run(flow_run_id))
        except ObjectNotFound:
            return None

    async def states(self, flow_run_id: UUID) -> list[State[Any]]:
        """Return every state that the run has been in, oldest first."""
        states = await self._patiently(lambda: self._client.read_flow_run_states(flow_run_id))
        return sorted(states, key=lambda state: state.timestamp)

    async def claim_id(self, flow_run_id: UUID) -> UUID:
        """Return the id of the Pending state that began the present attempt at a run."""
        return present_claim(await self.states(flow_run_id)) or flow_run_id

    async def began_anew(self, flow_run_id: UUID, claim_id: UUID) -> datetime | None:
        """Return when the present attempt at a run began; None if it is the one of a claim.

        Args:
            flow_run_id: The run.
            claim_id: The Pending state that began an attempt.
        """
        states = await self.states(flow_run_id)
        present = present_claim(states)
        newer = (state.timestamp for state in states if state.id == present != claim_id)
        return next(newer, None)

    async def label(self, flow_run_id: UUID, labels: dict[str, str]) -> None:
        """Add labels to a run; they are for machines, and no page of the UI shows them."""
        await self._patiently(
            lambda: self._client.update_flow_run_labels(flow_run_id, dict(labels))
        )

    async def online_workers(self, work_pool_name: str) -> frozenset[str]:
        """Return the names of the workers of a pool that Prefect has heard of lately.

        The server counts a worker as offline after three missed heartbeats (3.8.8, a setting).
        """
        found: list[str] = []
        offset = 0
        while True:
            page = await self._client.read_workers_for_work_pool(work_pool_name, offset=offset)
            found += [worker.name for worker in page if worker.status == WorkerStatus.ONLINE]
            offset += len(page)
            if not page:  # how long one is, the server decides
                return frozenset(found)

    async def record_pid(self, flow_run_id: UUID, infrastructure_pid: str) -> None:
        """Tell Prefect where the run's job is."""
        await self._patiently(
            lambda: self._client.update_flow_run(flow_run_id, infrastructure_pid=infrastructure_pid)
        )

    async def events_of(self, resource_id: str, *, since: datetime) -> Sequence[Event]:
        """Return the events of a resource that Prefect has.

        Args:
            resource_id: Its `prefect.resource.id`.
            since: How far to look back.

        Returns:
            At most 50 of them, and none if Prefect does not say: it keeps events for a while only.
        """
        wanted = EventFilter(
            resource=EventResourceFilter(id=[resource_id]),
            occurred=EventOccurredFilter.model_validate({"since": since}),
        )
        try:
            return (await self._client.read_events(wanted, limit=_PAGE_OF_EVENTS)).events
        except (httpx.HTTPError, PrefectHTTPStatusError) as exc:
            _log.debug("Cannot read the events of %s: %s", resource_id, exc)
            return []

    async def show_pending(
        self,
        flow_run_id: UUID,
        message: str,
        *,
        name: str = INFRASTRUCTURE_PENDING,
        fresh_until: float = math.inf,
    ) -> bool:
        """Put a run whose driver has not spoken yet into a Pending state that says more.

        Args:
            flow_run_id: The run.
            message: What it waits for.
            name: Of the state.
            fresh_until: Until when, by `anyio.current_time`, nothing can have been reported that
                this would undo.

        Returns:
            Whether it is in that state now, or in one that says more.
        """
        state = (await self._client.read_flow_run(flow_run_id)).state
        if state is None or not state.is_pending() or state.name not in _NOT_BEGUN:
            return False
        if _NOT_BEGUN.index(state.name) >= _NOT_BEGUN.index(name):
            return True
        if anyio.current_time() > fresh_until:
            return False
        proposed: State[Any] = State(type=StateType.PENDING, name=name, message=message)
        try:
            granted = await propose_state(self._client, proposed, flow_run_id=flow_run_id)
        except (Abort, ObjectNotFound):
            return False
        return granted.name == name

    async def link(self, flow_run_id: UUID, link: Link, *, may_be_there: bool) -> None:
        """Put a link onto a run; see `put_link`."""
        await put_link(self._client, flow_run_id, link, may_be_there=may_be_there)

    async def crash(self, flow_run_id: UUID, message: str, *, rename: bool = False) -> bool:
        """Mark a run Crashed, unless it has ended, or been rescheduled, in the meantime.

        Args:
            flow_run_id: The run.
            message: What happened and what to do.
            rename: Whether to replace the message of a crash that our own stop has caused.

        Returns:
            Whether the run is Crashed with this message.
        """
        run = await self.read(flow_run_id)
        suits = partial(_may_crash, rename=rename)
        return await self._propose(run, Crashed(message=message), suits=suits)

    async def cancelled(self, flow_run_id: UUID, message: str) -> bool:
        """Mark a run Cancelled if it is still Cancelling; return whether it now is."""
        run = await self.read(flow_run_id)
        return await self._propose(run, Cancelled(message=message), suits=_is_cancelling)

    async def end_again(self, flow_run_id: UUID, claim_id: UUID, ended: State[Any]) -> bool:
        """Give a run the final state again that a claim has replaced, unless it has gone on."""
        run = await self.read(flow_run_id)
        again: State[Any] = State(type=ended.type, name=ended.name, message=ended.message)
        # By force: the server lets no run that is being cancelled end in another way (3.8.8).
        return await self._propose(
            run, again, force=True, suits=lambda r: r.state_id == claim_id or _is_cancelling(r)
        )

    async def try_again(
        self, flow_run_id: UUID, message: str, *, allowed: int, delay: float
    ) -> bool:
        """Schedule another attempt at a run whose infrastructure has failed.

        The attempts are counted in the run's own history, from the last time it was started
        anew: a state of the name `INFRASTRUCTURE_RETRY` for each.

        Args:
            flow_run_id: The run.
            message: What has failed.
            allowed: How many such attempts the run may have.
            delay: Seconds until it may start.

        Returns:
            Whether it was scheduled; not if the attempts are used up, the run has gone on or
            ended, or is in no work queue, so that no worker would be given it.
        """
        run = await self.read(flow_run_id)
        if run is None or run.work_queue_id is None or not _may_crash(run):
            return False
        used = _infrastructure_retries(await self.states(flow_run_id))
        if used >= allowed:
            return False
        if (policy := policy_for_workers(run.empirical_policy, run.state)) is not None:
            await self._set_policy(flow_run_id, policy)
        state = Scheduled(
            name=INFRASTRUCTURE_RETRY,
            scheduled_time=datetime.now(UTC) + timedelta(seconds=delay),
            message=f"Infrastructure retry {used + 1} of {allowed}. {message}",
        )
        is_scheduled = await self._propose(run, state, suits=_may_crash)
        if is_scheduled and run.state is not None and run.state.is_paused():
            await self._count_next_start(flow_run_id)
        return is_scheduled

    async def _count_next_start(self, flow_run_id: UUID) -> None:
        """Have the server count the next attempt at a run that was scheduled out of a pause.

        Otherwise it takes the next start for the pause's end, and Prefect's engine gives the
        attempt the subflow runs of the one before, which have ended (3.8.8).
        """
        run = await self.read(flow_run_id)
        if run is not None and run.empirical_policy.resuming:
            counted = run.empirical_policy.model_copy(update={"resuming": False})
            await self._set_policy(flow_run_id, counted)

    async def _set_policy(self, flow_run_id: UUID, policy: FlowRunPolicy) -> None:
        await self._patiently(
            lambda: self._client.update_flow_run(flow_run_id, empirical_policy=policy)
        )

    async def active(self, work_pool_id: UUID, work_pool_name: str) -> dict[UUID, ActiveRun]:
        """Return the runs of a work pool that an attempt has begun on and not ended."""
        lost = await self._queueless.active(work_pool_id, work_pool_name)
        return lost | await active_runs(self._client, work_pool_id)

    async def end_children(self, flow_run_id: UUID, claim_id: UUID, ending: Ending) -> int:
        """Settle the task runs and subflow runs that an ended attempt left open; return how many.

        Args:
            flow_run_id: The run.
            claim_id: The Pending state that began the attempt.
            ending: How they end.
        """
        return await end_children(
            self._client,
            flow_run_id,
            ending,
            self._patiently,
            began_anew=partial(self.began_anew, flow_run_id, claim_id),
        )

    async def ended(self, work_pool_id: UUID, since: datetime) -> dict[UUID, ActiveRun]:
        """Return the runs of a work pool that have ended since a moment of the server's clock."""
        return await ended_runs(self._client, work_pool_id, since)

    async def some(self, flow_run_ids: Collection[UUID]) -> dict[UUID, ActiveRun]:
        """Return some runs, in whatever state they are, without those that were deleted."""
        return await runs_by_id(self._client, flow_run_ids)

    async def shows_life(self, flow_run_id: UUID, *, within: float) -> bool:
        """Say whether the run has logged a line or changed its state in the last seconds."""
        run = await self.read(flow_run_id)
        if run is None or run.state is None:
            return False
        logs = await self._patiently(
            lambda: self._client.read_logs(
                log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])),
                sort=LogSort.TIMESTAMP_DESC,
                limit=1,
            )
        )
        last = max([run.state.timestamp, *(log.timestamp for log in logs)])
        return datetime.now(UTC) - last < timedelta(seconds=within)

    async def _propose(
        self,
        run: FlowRun | None,
        state: State[Any],
        *,
        suits: Callable[[FlowRun], bool],
        force: bool = False,
    ) -> bool:
        """Give a run a state, once; say whether it has been given it.

        The answer may get lost after the server has done what it was asked: before asking again,
        the run's history is read. A second Crashed would set off automations and retries again.

        Args:
            run: The run, just read; None if it has been deleted.
            state: The state.
            suits: Returns whether the state still suits the run as it is now.
            force: Whether the server is to skip its rules.
        """
        if run is None or not suits(run):
            return False
        asked, present = False, run

        async def propose() -> bool:
            nonlocal asked, present
            if asked:
                since = await self._states_after(run)
                if any(s.type == state.type and s.message == state.message for s in since):
                    return True
                present = await self._client.read_flow_run(run.id)
                if any(is_claim(s) for s in since) or not suits(present):
                    return False  # the run has gone on without us
            asked = True
            # Prefect lets no run leave Crashed for Crashed (3.8.8): our message is the better one.
            is_crashed = present.state is not None and present.state.is_crashed()
            granted = await propose_state(
                self._client, state, flow_run_id=run.id, force=force or is_crashed
            )
            return granted.type == state.type

        try:
            return await self._patiently(propose)
        except (Abort, ObjectNotFound):
            # Somebody else has settled the run, or deleted it: both end our interest in it.
            return False

    async def _states_after(self, run: FlowRun) -> list[State[Any]]:
        """Return the states that a run has been in since it was read."""
        history = await self._client.read_flow_run_states(run.id)
        before = next((s.timestamp for s in history if s.id == run.state_id), None)
        return [s for s in history if before is None or s.timestamp > before]

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        async def ask_in_turn() -> T:
            async with self._requests:
                return await ask()

        return await wait_for_answer(ask_in_turn, first_wait=self._first_wait)


def type_of_state(run: FlowRun) -> StateType | None:
    """Return the type of a run's state; see `type_in_effect`."""
    state = run.state
    if state is None:
        return None
    reschedule = state.state_details.pause_reschedule
    return type_in_effect(state.type, run.empirical_policy.retry_type, reschedule)


def _infrastructure_retries(history: Sequence[State[Any]]) -> int:
    used = 0
    for state in history:
        used = 0 if state.is_final() else used + (state.name == INFRASTRUCTURE_RETRY)
    return used


def _is_cancelling(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_cancelling()


def _may_crash(run: FlowRun, *, rename: bool = False) -> bool:
    state = run.state
    if rename and state is not None and (state.is_crashed() or state.name == "AwaitingRetry"):
        return True  # our own stop: the engine reports it as a crash, or has the run tried again
    return type_of_state(run) in GOES_ON
