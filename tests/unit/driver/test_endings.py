"""How a driver ends a run, and the hooks that it runs in the place of Prefect's engine."""

import sys
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State
from prefect.client.schemas.responses import (
    OrchestrationResult,
    SetStateStatus,
    StateAcceptDetails,
)
from prefect.exceptions import Pause
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import AwaitingRetry, Cancelling, Paused, Running, Scheduled, Suspended

from prefect_ray_worker.driver import flow_process
from prefect_ray_worker.driver.endings import STOPPED_OUTSIDE, Endings, run_hooks
from prefect_ray_worker.driver.flow_process import FlowProcess
from prefect_ray_worker.driver.signals import Termination
from prefect_ray_worker.shared.ids import attempt_name

CLAIM = uuid4()


class Server:
    """Has one run, and grants what is asked for."""

    def __init__(self, state: State[Any], retry_type: Any = None) -> None:
        policy = FlowRunPolicy(retry_type=retry_type, pause_keys={"gate"})
        self.run = FlowRun(id=uuid4(), flow_id=uuid4(), state=state, empirical_policy=policy)
        self.endings = Endings(cast("SyncPrefectClient", self), self.run.id, attempt_name(CLAIM))

    def read_flow_run(self, _: UUID) -> FlowRun:
        return self.run.model_copy()

    def update_flow_run(self, _: UUID, *, empirical_policy: FlowRunPolicy) -> None:
        self.run.empirical_policy = empirical_policy

    def set_flow_run_state(
        self, _: UUID, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        if self.run.state is not None and self.run.state.is_paused():
            self.run.empirical_policy.resuming = True
        self.run.state = state
        details = StateAcceptDetails()
        return OrchestrationResult(state=state, status=SetStateStatus.ACCEPT, details=details)

    def request(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(json=lambda: [{"type": "PENDING", "id": str(CLAIM)}])


@pytest.mark.parametrize(
    ("state", "retry_type", "becomes"),
    [
        (Suspended(), "in_process", "reschedule"),
        (Scheduled(name="Resuming"), "in_process", "reschedule"),
        (Scheduled(), "in_process", "reschedule"),
        (Suspended(), None, None),
        (AwaitingRetry(), "in_process", "in_process"),
        (Paused(), "in_process", "in_process"),
        (Running(), "in_process", "in_process"),
    ],
    ids=["suspended", "resumed", "scheduled", "first try", "waits here", "paused here", "running"],
)
def test_a_run_that_goes_on_elsewhere_after_a_retry_can_be_given_to_a_worker(
    state: State[Any], retry_type: Any, becomes: Any
) -> None:
    """It stayed Scheduled for ever: the policy of its second try keeps it from all workers."""
    server = Server(state, retry_type)
    server.endings.released()
    assert server.run.empirical_policy.retry_type == becomes
    assert server.run.empirical_policy.pause_keys == {"gate"}, "or it would pause there again"


def test_a_flow_that_suspends_releases_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    @flow
    def suspends() -> None: ...

    def run_flow(*_: Any, **__: Any) -> None:
        raise Pause(state=Suspended())

    monkeypatch.setattr(flow_process, "run_flow", run_flow)
    server = Server(Suspended(), "in_process")
    source: Any = SimpleNamespace(parameters=lambda _: {})
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        process = FlowProcess(server.run, "a", source, server.endings, Termination())
        assert process._run_flow(suspends) == 0
    assert server.run.empirical_policy.retry_type == "reschedule"


@pytest.mark.parametrize("meaning", ["relinquish", "settled"])
def test_an_interrupted_flow_releases_its_run(meaning: Any) -> None:
    server = Server(Scheduled(name="Resuming"), "in_process")
    source: Any = SimpleNamespace()
    process = FlowProcess(server.run, "a", source, server.endings, Termination())
    process._watch.meaning = meaning
    assert process._settle(server.endings) == 0
    assert server.run.empirical_policy.retry_type == "reschedule"


def test_a_run_that_is_paused_here_is_rescheduled() -> None:
    """It stayed Paused, and the worker crashed it with the advice to set what was set."""
    gate = Paused(pause_key="gate")
    server = Server(gate, "in_process")
    server.endings.rescheduled()
    assert server.run.state is not None
    assert server.run.state.name == "AwaitingRetry"
    policy = server.run.empirical_policy
    assert policy.retry_type == "reschedule"
    assert policy.pause_keys == set(), "or the next attempt would pass the gate"
    assert not policy.resuming


@pytest.mark.parametrize(
    ("state", "is_crashed"), [(Paused(), True), (Suspended(), False)], ids=["paused", "suspended"]
)
def test_a_run_that_is_paused_here_can_crash(state: State[Any], is_crashed: bool) -> None:
    """Its `on_crashed` hooks did not run."""
    server = Server(state)
    assert (server.endings.crashed(STOPPED_OUTSIDE) is not None) is is_crashed


def test_a_hook_that_exits_stops_neither_the_others_nor_the_end_of_the_run() -> None:
    ran: list[str] = []

    @flow
    def hooked() -> None: ...

    def leaves(*_: Any) -> None:
        sys.exit(0)

    run = FlowRun(id=uuid4(), name="run", flow_id=uuid4())
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        run_hooks([leaves, lambda *_: ran.append("next")], hooked, run, Cancelling())
    assert ran == ["next"]
