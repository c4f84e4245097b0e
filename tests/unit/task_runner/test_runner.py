"""How a runner is left, without a Ray."""

from typing import Any
from uuid import uuid4

import pytest
from prefect.results import ResultRecord, ResultRecordMetadata
from prefect.serializers import PickleSerializer
from prefect.states import Completed

from prefect_ray_worker import RayTaskRunner
from prefect_ray_worker.task_runner.futures import RayTaskFuture
from prefect_ray_worker.task_runner.session import RaySession
from prefect_ray_worker.task_runner.task_end import TaskEnd


@pytest.fixture
def session() -> RaySession:
    return RaySession(is_ours=True, paths=[])


@pytest.fixture
def runner(session: RaySession) -> RayTaskRunner:
    """A started runner whose Ray is gone, and every result with it."""
    runner = RayTaskRunner()
    runner._started, runner._session = True, session
    return runner


def lost(runner: RayTaskRunner) -> RayTaskFuture[Any]:
    """Return a future whose result the flow has waited for, and Ray has lost."""
    future: RayTaskFuture[Any] = RayTaskFuture(uuid4())
    metadata = ResultRecordMetadata(serializer=PickleSerializer(), storage_key="key")
    record = ResultRecord(result=1, metadata=metadata)
    future.resolve(TaskEnd.of(Completed(data=record))[0])
    future.wait()
    runner._futures.add(future)
    return future


def test_a_lost_result_does_not_decide_how_the_flow_ends(
    runner: RayTaskRunner, session: RaySession
) -> None:
    """The flow's retry, its cancellation or its Completed state was replaced by CrashedRun."""
    future = lost(runner)
    runner.__exit__(None, None, None)
    assert future.is_done
    assert session.users == 0


@pytest.mark.parametrize("how", [None, KeyboardInterrupt()], ids=["returns", "is interrupted"])
def test_only_a_flow_that_returns_fetches_what_it_has_waited_for(
    runner: RayTaskRunner, how: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Any] = []
    future = lost(runner)
    monkeypatch.setattr(future, "load", lambda: fetched.append(future))
    runner.__exit__(type(how), how, None)
    assert bool(fetched) is (how is None)
