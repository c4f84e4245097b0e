"""`StateGuard`: a terminal or Scheduled state that something else than this flow has set stands.

A user, an automation or a worker can end a run, or schedule it again, while its flow goes on.
Prefect lets the end of the flow replace such a state: Failed or Scheduled would become Completed
(3.8.8). So the engine asks here before each of its proposals, and `InterruptWatch` asks whether the
flow has to end.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
from prefect import flow_engine
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.states import Crashed

from prefect_ray_worker.driver.api import was_not_taken
from prefect_ray_worker.driver.endings import is_rescheduled
from prefect_ray_worker.shared.masking import masked
from prefect_ray_worker.shared.run_rules import Patience

# A state that is not reported costs the result of the whole run.
_PROPOSAL_SECONDS = 300.0


class StateGuard:
    """Knows which of a run's states its flow has set.

    The guard looks at the run before each request that proposes a state, also where one proposal
    takes several: Prefect waits inside it for the next try of a flow (3.8.8), and the guard waits
    for an API that is busy. Between a look and its request a few milliseconds remain in which a
    state from outside is replaced: the server has no conditional proposal.

    Attributes:
        outside: The terminal or Scheduled state that was set from outside, once it is noticed.
        is_ending: Whether the engine has proposed the flow's own final state.
        has_ended: Whether Prefect has accepted it.

    Args:
        flow_run: The run, which this driver has claimed.
    """

    def __init__(self, flow_run: FlowRun) -> None:
        self.outside: State | None = None
        self.is_ending = self.has_ended = False
        self._before_end: Callable[[State], None] | None = None
        self._run_id = flow_run.id
        self._ours: UUID | None = flow_run.state.id if flow_run.state else None

    def notice(self, flow_run: FlowRun) -> State | None:
        """Return the terminal or Scheduled state that a run has from outside, or None.

        Args:
            flow_run: The run, just read.
        """
        state = flow_run.state
        if self.outside is None and state is not None and _gives_run_up(flow_run, state):
            self.outside = state if state.id != self._ours else None
        return self.outside

    def install(self, before_end: Callable[[State], None] | None = None) -> None:
        """Have the engine of this process ask here before it proposes a state of the run.

        All proposals, also those of subflows, then wait out an API that has too much to do.

        Args:
            before_end: Called with each final state that the flow's engine is about to propose.
        """
        self._before_end = before_end
        # The engine proposes through names of its module (`set_state`, 3.8.8), and runs the hooks
        # of the state that it is answered. There is no hook before a proposal.
        engine: Any = flow_engine
        engine.propose_state = partial(self._propose, engine.propose_state)
        engine.propose_state_sync = partial(self._propose_sync, engine.propose_state_sync)

    async def _propose(
        self, plain: Callable[..., Awaitable[State]], client: Any, state: State, **options: Any
    ) -> State:
        is_guarded = options.get("flow_run_id") == self._run_id
        if is_guarded:
            self._begin(state)
            if self.is_ending and self.outside is None:
                await anyio.to_thread.run_sync(self._announce, state)
            client = _GuardedClient(client, self)
        wait = _patience()
        while True:
            try:
                granted = await plain(client, state, **options)
            except _Stands as stands:
                return stands.state
            except Exception as exc:
                if (delay := wait(exc)) is None:
                    raise
                await anyio.sleep(delay)
            else:
                return self._end(granted) if is_guarded else granted

    def _propose_sync(
        self, plain: Callable[..., State], client: Any, state: State, **options: Any
    ) -> State:
        is_guarded = options.get("flow_run_id") == self._run_id
        if is_guarded:
            self._begin(state)
            if self.is_ending and self.outside is None:
                self._announce(state)
            client = _GuardedSyncClient(client, self)
        wait = _patience()
        while True:
            try:
                granted = plain(client, state, **options)
            except _Stands as stands:
                return stands.state
            except Exception as exc:
                if (delay := wait(exc)) is None:
                    raise
                time.sleep(delay)
            else:
                return self._end(granted) if is_guarded else granted

    def _announce(self, state: State) -> None:
        if self._before_end is not None:
            try:
                self._before_end(state)
            except Exception as exc:
                flow_run_logger(flow_run_id=self._run_id).warning(
                    "The caller of this flow run gets no answer: %s", masked(str(exc))
                )

    def _begin(self, state: State) -> None:
        # Set first: a watch that reads the flow's own final state must not take it for another's.
        self.is_ending = state.is_final()

    def _end(self, granted: State) -> State:
        self._ours = granted.id
        self.is_ending = self.has_ended = granted.is_final()
        return granted


def _gives_run_up(flow_run: FlowRun, state: State) -> bool:
    """Return whether a state says that nobody waits for the present attempt any more."""
    return state.is_final() or is_rescheduled(flow_run)


class _Stands(Exception):
    """Says that a run has a state from outside, instead of the request for another."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state


class _GuardedClient:
    """Prefect's client, as far as `propose_state` uses it, with a look before each request."""

    def __init__(self, client: Any, guard: StateGuard) -> None:
        self._client = client
        self._guard = guard

    async def set_flow_run_state(self, flow_run_id: UUID, state: State, **options: Any) -> Any:
        with suppress(Exception):  # then the server decides
            self._guard.notice(await self._client.read_flow_run(flow_run_id))
        if self._guard.outside is not None:
            raise _Stands(self._guard.outside)
        return await self._client.set_flow_run_state(flow_run_id, state, **options)


class _GuardedSyncClient:
    """The same for `propose_state_sync`."""

    def __init__(self, client: Any, guard: StateGuard) -> None:
        self._client = client
        self._guard = guard

    def set_flow_run_state(self, flow_run_id: UUID, state: State, **options: Any) -> Any:
        with suppress(Exception):
            self._guard.notice(self._client.read_flow_run(flow_run_id))
        if self._guard.outside is not None:
            raise _Stands(self._guard.outside)
        return self._client.set_flow_run_state(flow_run_id, state, **options)


def _patience() -> Callable[[Exception], float | None]:
    """Return what says how long to wait after a failed proposal, or None to give up.

    Only a proposal that has certainly changed nothing may be repeated.
    """
    patience = Patience(_PROPOSAL_SECONDS, now=time.monotonic())
    return lambda exc: patience.wait(time.monotonic()) if was_not_taken(exc) else None


def crash_with(message: str) -> None:
    """Have the flow engine say this of every run that it crashes from now on, subflows included.

    It makes the state from the exception alone (`exception_to_crashed_state`, 3.8.8).
    """

    async def crashed(*_: Any, **__: Any) -> State:
        return Crashed(message=message)

    engine: Any = flow_engine
    engine.exception_to_crashed_state = crashed
