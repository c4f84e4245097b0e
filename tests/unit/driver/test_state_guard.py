"""What the engine is answered when it proposes a state: Prefect's side is played."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow_engine
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import (
    OrchestrationResult,
    SetStateStatus,
    StateAcceptDetails,
    StateRejectDetails,
    StateWaitDetails,
)
from prefect.exceptions import PrefectHTTPStatusError

from prefect_ray_worker.driver.state_guard import StateGuard

RUN = uuid4()
STARTING: State[Any] = State(type=StateType.PENDING, name="Starting")
COMPLETED: State[Any] = State(type=StateType.COMPLETED)


def run_in(state: State[Any]) -> FlowRun:
    return FlowRun(id=RUN, flow_id=uuid4(), state=state)


class Server:
    """Takes every proposal, after it has refused some, or has asked for patience."""

    def __init__(self) -> None:
        self.state: State[Any] = STARTING
        self.proposed: list[StateType] = []
        self.refusals: list[int] = []
        self.answer: State[Any] | None = None
        self.on_wait: list[State[Any] | None] = []

    def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        return run_in(self.state)

    def set_flow_run_state(
        self, flow_run_id: UUID, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        if self.refusals:
            request = httpx.Request("POST", "http://api/set_state")
            response = httpx.Response(self.refusals.pop(0), request=request)
            self._set_from_outside()
            error = httpx.HTTPStatusError("no", request=request, response=response)
            raise PrefectHTTPStatusError.from_httpx_error(error)
        if self.on_wait:
            self._set_from_outside()
            wait = StateWaitDetails(delay_seconds=0, reason="Scheduled time is in the future")
            return OrchestrationResult(state=None, status=SetStateStatus.WAIT, details=wait)
        self.proposed.append(state.type)
        status = SetStateStatus.REJECT if self.answer else SetStateStatus.ACCEPT
        self.state = self.answer or state.model_copy(update={"id": uuid4()})
        details = StateRejectDetails(reason="") if self.answer else StateAcceptDetails()
        return OrchestrationResult(state=self.state, status=status, details=details)

    def _set_from_outside(self) -> None:
        state = self.on_wait.pop(0) if self.on_wait else None
        self.state = state or self.state


class AsyncServer:
    """The same for `PrefectClient`."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        return self._server.read_flow_run(flow_run_id)

    async def set_flow_run_state(
        self, flow_run_id: UUID, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        return self._server.set_flow_run_state(flow_run_id, state, force)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    for name in ("propose_state", "propose_state_sync"):  # restores what `install` replaces
        monkeypatch.setattr(flow_engine, name, flow_engine.__dict__[name])
    return Server()


def propose(server: Server, state: State[Any], run_id: UUID = RUN) -> State[Any]:
    ask: Any = flow_engine.__dict__["propose_state_sync"]
    return ask(server, state, flow_run_id=run_id)


def test_the_flows_own_states_are_proposed(server: Server) -> None:
    guard = StateGuard(run_in(STARTING))
    guard.install()
    for state in (State(type=StateType.RUNNING), COMPLETED):
        assert propose(server, state) is state
    assert server.proposed == [StateType.RUNNING, StateType.COMPLETED]
    assert guard.is_ending
    assert guard.notice(run_in(COMPLETED)) is None, "the watch must not end its hooks"


@pytest.mark.parametrize(
    "kind", [StateType.FAILED, StateType.CANCELLED, StateType.CRASHED, StateType.SCHEDULED]
)
@pytest.mark.parametrize("proposed", [StateType.RUNNING, StateType.COMPLETED, StateType.CRASHED])
def test_a_state_from_outside_stands(server: Server, kind: StateType, proposed: StateType) -> None:
    guard = StateGuard(run_in(STARTING))
    guard.install()
    outside = server.state = State(type=kind)
    assert propose(server, State(type=proposed)).id == outside.id
    assert server.proposed == []
    assert guard.outside is not None


def test_a_next_try_is_the_flows_own(server: Server) -> None:
    """Prefect answers Failed with AwaitingRetry."""
    guard = StateGuard(run_in(STARTING))
    guard.install()
    server.answer = State(type=StateType.SCHEDULED, name="AwaitingRetry")
    propose(server, State(type=StateType.FAILED))
    assert not guard.is_ending
    waiting = run_in(server.state)
    waiting.empirical_policy.retry_type = "in_process"
    assert guard.notice(waiting) is None


def test_a_schedule_from_outside_is_noticed_in_a_second_try_too() -> None:
    """The policy of the try made it the flow's own wait, so that the flow went on."""
    scheduled = run_in(State(type=StateType.SCHEDULED))
    scheduled.empirical_policy.retry_type = "in_process"
    assert StateGuard(run_in(STARTING)).notice(scheduled) is scheduled.state


def test_states_of_subflows_are_not_guarded(server: Server) -> None:
    StateGuard(run_in(STARTING)).install()
    server.state = State(type=StateType.FAILED)
    assert propose(server, COMPLETED, uuid4()) is COMPLETED


def test_a_busy_api_is_asked_again(server: Server) -> None:
    StateGuard(run_in(STARTING)).install()
    server.refusals = [429]
    assert propose(server, COMPLETED) is COMPLETED


@pytest.mark.parametrize("code", [422, 500])
def test_what_may_have_been_taken_is_not_sent_again(server: Server, code: int) -> None:
    StateGuard(run_in(STARTING)).install()
    server.refusals = [code]
    with pytest.raises(PrefectHTTPStatusError):
        propose(server, COMPLETED)


@pytest.mark.parametrize("refusals", [[], [429]])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_terminal_state_set_while_a_proposal_waits_stands(
    server: Server, refusals: list[int], is_async: bool
) -> None:
    """Prefect waits inside the proposal of Running for the next try of a flow with `retries`."""
    guard = StateGuard(run_in(STARTING))
    guard.install()
    failed: State[Any] = State(type=StateType.FAILED)
    server.refusals, server.on_wait = refusals, [failed]
    running: State[Any] = State(type=StateType.RUNNING)
    if is_async:
        ask: Any = flow_engine.__dict__["propose_state"]
        granted = await ask(AsyncServer(server), running, flow_run_id=RUN)
    else:
        granted = propose(server, running)
    assert granted.id == failed.id
    assert server.proposed == []
    assert guard.outside is not None


def test_a_proposal_that_only_waits_is_granted(server: Server) -> None:
    StateGuard(run_in(STARTING)).install()
    server.on_wait = [None]
    assert propose(server, State(type=StateType.RUNNING)).is_running()


@pytest.mark.parametrize(
    "name", ["propose_state", "propose_state_sync", "exception_to_crashed_state"]
)
def test_the_names_that_are_replaced_are_still_there(name: str) -> None:
    assert callable(flow_engine.__dict__[name])
