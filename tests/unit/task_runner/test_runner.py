"""How a runner is left, without a Ray."""

import gc
import threading
import weakref
from typing import Any
from uuid import uuid4

import pytest
import ray
from prefect.client.schemas.objects import FlowRun
from prefect.results import ResultRecord, ResultRecordMetadata
from prefect.serializers import PickleSerializer
from prefect.states import Completed, Failed

from prefect_ray_worker import RayTaskRunner
from prefect_ray_worker.task_runner.dispatcher import Dispatcher
from prefect_ray_worker.task_runner.futures import RayTaskFuture
from prefect_ray_worker.task_runner.pickling import Packed, pack
from prefect_ray_worker.task_runner.plain import to_ray
from prefect_ray_worker.task_runner.process import TaskProcess
from prefect_ray_worker.task_runner.session import RaySession
from prefect_ray_worker.task_runner.task_end import TaskEnd
from prefect_ray_worker.task_runner.telemetry import Telemetry
from prefect_ray_worker.task_runner.waiting import OpenRefs


@pytest.fixture
def session() -> RaySession:
    return RaySession(is_ours=True, paths=[])


@pytest.fixture
def runner(session: RaySession) -> RayTaskRunner:
    """A started runner whose Ray is gone, and every result with it."""
    runner = RayTaskRunner()
    runner._started, runner._session = True, session
    return runner


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """References that a Ray was asked for, which has the number 1 for each."""
    asked: list[Any] = []

    def get(ref: Any) -> Packed:
        asked.append(ref)
        return pack(1)

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get", get)
    return asked


def ended(runner: RayTaskRunner) -> RayTaskFuture[Any]:
    """Return a future whose result the flow has waited for, and Ray has."""
    future: RayTaskFuture[Any] = RayTaskFuture(uuid4())
    metadata = ResultRecordMetadata(serializer=PickleSerializer(), storage_key="key")
    record = ResultRecord(result=1, metadata=metadata)
    future.set_refs("end", "result")
    future.resolve(TaskEnd.of(Completed(data=record))[0])
    future.wait()
    future.kept_results = runner._results
    runner._futures.add(future)
    return future


def test_a_result_is_fetched_by_the_thread_that_asks(
    runner: RayTaskRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's `State.result` sent each through an event loop's thread, as dear as a submit."""
    threads: list[threading.Thread] = []

    def get(_: Any) -> Any:
        threads.append(threading.current_thread())
        return to_ray(pack(1))

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get", get)
    assert ended(runner).result() == 1
    assert threads == [threading.current_thread()]


def test_a_lost_result_does_not_decide_how_the_flow_ends(
    runner: RayTaskRunner, session: RaySession
) -> None:
    """The flow's retry, its cancellation or its Completed state was replaced by CrashedRun."""
    future = ended(runner)
    runner.__exit__(None, None, None)
    assert future.is_done
    assert session.users == 0


@pytest.mark.parametrize("how", [None, KeyboardInterrupt()], ids=["returns", "is interrupted"])
def test_only_a_flow_that_returns_fetches_what_it_has_waited_for(
    runner: RayTaskRunner, how: BaseException | None, fetched: list[Any]
) -> None:
    future = ended(runner)
    runner.__exit__(type(how), how, None)
    assert fetched == ([] if how else [future.result_ref])


def test_states_that_nobody_has_any_more_are_not_fetched(
    runner: RayTaskRunner, fetched: list[Any]
) -> None:
    """1,000 futures whose state the flow had looked at were 1,000 fetches at its end."""
    gc.disable()
    try:
        states = [ended(runner).state for _ in range(3)]
        assert not list(runner._futures)
        del states[1:]
        runner.__exit__(None, None, None)
    finally:
        gc.enable()
    kept: Any = states[0].data
    assert fetched == ["result"]
    assert kept.result == 1


@pytest.mark.parametrize("data", [ValueError(), ["states"]], ids=["raises", "returns states"])
def test_a_flow_that_has_raised_fetches_nothing(
    runner: RayTaskRunner, data: Any, fetched: list[Any]
) -> None:
    """Its exception keeps its frames, and they keep the states."""
    runner._flow_run = FlowRun(flow_id=uuid4(), state=Failed(data=data))
    future = ended(runner)
    assert future.state.is_completed()
    runner.__exit__(None, None, None)
    assert bool(fetched) is isinstance(data, list)


def test_a_result_goes_with_its_future(runner: RayTaskRunner, fetched: list[Any]) -> None:
    """It stayed until a full garbage collection."""
    future = ended(runner)
    assert future.result() == 1
    gone = weakref.ref(future)
    gc.disable()
    try:
        del future
        assert gone() is None
        assert not list(runner._results)
    finally:
        gc.enable()


@pytest.fixture
def in_ray_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of Ray's in which no task of ours has run."""
    monkeypatch.setattr("prefect_ray_worker.task_runner.session.is_task_process", lambda: True)
    monkeypatch.setattr("prefect_ray_worker.task_runner.waiting.replace_event_of_waits", id)
    monkeypatch.setattr(OpenRefs, "gives_cpu_back", False)


@pytest.mark.usefixtures("in_ray_process")
def test_a_flow_in_a_function_of_rays_gives_its_cpu_back() -> None:
    """As many functions as CPUs that waited for their tasks waited for ever."""
    with RayTaskRunner():
        assert OpenRefs.gives_cpu_back


@pytest.mark.usefixtures("in_ray_process")
@pytest.mark.parametrize("is_in_task", [True, False])
def test_a_flow_in_a_function_of_rays_sends_what_its_tasks_have_said(
    is_in_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray may end the process at once; a task's process sends it with the task's end."""
    sent: list[float] = []
    monkeypatch.setattr(Telemetry, "flush", lambda _, seconds, **__: sent.append(seconds))
    monkeypatch.setattr(TaskProcess, "is_in_task", lambda: is_in_task)
    with RayTaskRunner() as runner:
        runner._dispatcher = Dispatcher(1, Telemetry())
    assert bool(sent) is not is_in_task
