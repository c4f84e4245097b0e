"""What the dispatcher does before Ray has a task."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import replace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from prefect import task
from prefect.futures import PrefectFuture, PrefectTaskRunFuture
from ray.exceptions import WorkerCrashedError

from prefect_ray_worker.task_runner import losses
from prefect_ray_worker.task_runner.dispatcher import Dispatcher
from prefect_ray_worker.task_runner.futures import RayTaskFuture
from prefect_ray_worker.task_runner.pending import PendingTask
from prefect_ray_worker.task_runner.telemetry import telemetry


@task
def noted() -> None: ...


@pytest.fixture
def dispatcher() -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(1, telemetry())
    yield dispatcher
    dispatcher.stop()


class Foreign(PrefectTaskRunFuture[Any]):
    """A future that Ray knows nothing of.

    Args:
        refuses: Whether it cannot call back, as that of a flow run whose API is away.
    """

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__(uuid4())
        self._refuses = refuses

    def wait(self, timeout: float | None = None) -> None: ...

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any: ...

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        if self._refuses:
            raise ConnectionError


def pending_on(*sources: Foreign) -> PendingTask:
    fields: dict[str, Any] = dict.fromkeys(PendingTask.__dataclass_fields__)
    return PendingTask(**{**fields, "sources": sources})


def test_a_submit_that_raises_is_not_waited_for(dispatcher: Dispatcher) -> None:
    with pytest.raises(ConnectionError):
        dispatcher.launch(pending_on(Foreign(), Foreign(refuses=True)))
    waiting = threading.Thread(target=dispatcher.finish, daemon=True)
    waiting.start()
    waiting.join(2)
    assert not waiting.is_alive()


def test_first_submits_from_two_threads_start_one_thread(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the flow ended one of two; the other stayed for as long as the process."""
    both, started = threading.Barrier(2), []

    def copied() -> Context:
        started.append(1)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return copy_context()

    monkeypatch.setattr("prefect_ray_worker.task_runner.dispatcher.copy_context", copied)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(dispatcher.launch, [pending_on(Foreign()) for _ in range(2)]))
    assert started == [1]


def test_a_retry_that_cannot_be_reported_is_waited_for_no_longer_than_others(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow never ended: the task was neither run again nor crashed."""
    monkeypatch.setattr(losses, "get_client", Mock(side_effect=ConnectionError))
    future: RayTaskFuture[Any] = RayTaskFuture(uuid4())
    pending = replace(pending_on(), task=noted, future=future, infra_retries=1)
    dispatcher._submitted.add(pending)
    dispatcher._retry(pending, WorkerCrashedError())
    dispatcher.finish()
    # No Ray is there to run it again.
    assert future.state.is_crashed()
