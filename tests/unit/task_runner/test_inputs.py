"""What a submit takes from its parameters and from what it waits for."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from prefect.states import Completed, Failed, State
from prefect.utilities.annotations import allow_failure, quote

from prefect_ray_worker.task_runner.futures import DoneFuture, RayTaskFuture
from prefect_ray_worker.task_runner.inputs import Inputs, Placeholder
from prefect_ray_worker.task_runner.pending import PendingTask
from prefect_ray_worker.task_runner.pickling import pack, unpack


def waiting_for(*wait_for: Any) -> Inputs:
    return Inputs({}, wait_for, None)


@pytest.mark.parametrize(
    "value",
    [b"x" * 100_000, threading.Lock(), {"deep": [threading.Lock()]}, quote(threading.Lock())],
    ids=["large", "a lock", "in a dict", "quoted"],
)
def test_values_to_wait_for_stay_in_the_driver(value: Any) -> None:
    """20 MB went along with each call, and a lock was an error without a name."""
    assert waiting_for(value).wait_for is None
    assert len(pack(waiting_for(value, RayTaskFuture(uuid4())).wait_for).content) < 1000


@pytest.mark.parametrize("make", [Completed, Failed])
def test_a_state_to_wait_for_goes_without_its_result(make: Callable[..., State[Any]]) -> None:
    state = make(data=threading.Lock())
    state.state_details.task_run_id = uuid4()
    inputs = waiting_for(state)
    assert inputs.wait_for is not None
    (sent,) = unpack(pack(inputs.wait_for))
    assert (sent.type, sent.state_details) == (state.type, state.state_details)
    assert bool(sent.data) is state.is_completed()  # or the engine misses a result
    assert [run.id for run in inputs.upstream["wait_for"]] == [state.state_details.task_run_id]


def test_annotations_of_what_to_wait_for_stay_with_it() -> None:
    first, second = RayTaskFuture[Any](uuid4()), RayTaskFuture[Any](uuid4())
    inputs = waiting_for({1: first, 2: [allow_failure([5, second])]})
    assert inputs.wait_for is not None
    plain, allowed = inputs.wait_for
    assert isinstance(plain, Placeholder)
    assert isinstance(allowed, allow_failure)
    assert inputs.sources == [first, second]
    assert not inputs.with_result


@pytest.mark.parametrize("is_parameter", [True, False])
def test_a_future_of_threads_goes_without_its_result_unless_that_is_wanted(
    is_parameter: bool,
) -> None:
    """A task that only waited for one with an unpicklable result was NotReady."""
    result = threading.Lock()
    ended = DoneFuture[Any](uuid4(), Completed(data=result))
    sent: Any = PendingTask._ended(ended, with_result=is_parameter)
    assert isinstance(sent, DoneFuture)
    assert sent.state.is_completed()
    assert (sent.state.data is result) is is_parameter
