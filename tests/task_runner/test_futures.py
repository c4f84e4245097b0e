"""Futures, results and what is sent: as users know it from ThreadPoolTaskRunner."""

import gc
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import UnfinishedRun
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.states import Completed, State

from prefect_ray_worker import RayTaskRunner, remote_options
from prefect_ray_worker.adhoc.following import RayFlowRunFuture
from prefect_ray_worker.errors import Unpicklable
from tests.real_ray import RealRay
from tests.task_runner.api import task_runs
from tests.task_runner.tasks import add, in_flow, length, sleep, type_name

pytestmark = pytest.mark.ray


def test_all_tasks_that_take_the_future_of_a_call_are_released(runner: RayTaskRunner) -> None:
    """The flow never ended: Prefect calls back once for each run, and not for this end (3.8.8)."""

    @flow
    def called() -> None: ...

    def body() -> Any:
        with get_client(sync_client=True) as client:
            future: Any = RayFlowRunFuture[Any](client.create_flow_run(called).id)
            futures = [type_name.submit(future) for _ in range(2)]
            ended = Completed(name="Skipped")
            client.set_flow_run_state(future.flow_run_id, ended, force=True)
        done, left = wait(futures, timeout=20)
        return len(done), len(left)

    assert in_flow(runner, body) == (2, 0)


def test_generators_states_and_none(runner: RayTaskRunner) -> None:
    @task
    def generates() -> Any:
        yield from range(3)

    @task
    def returns_a_state() -> State[Any]:
        return Completed(message="mine", data=7)

    @task
    def returns_nothing() -> None: ...

    def body() -> Any:
        state = returns_a_state.submit(return_state=True)
        return (
            list(generates.submit().result()),
            (state.message, state.result()),
            returns_nothing.submit().result(),
        )

    assert in_flow(runner, body) == ([0, 1, 2], ("mine", 7), None)


def test_waiting_for_futures(runner: RayTaskRunner) -> None:
    def body() -> Any:
        wait(sleep.map([0.5] * 4))  # so that both have a process at once
        slow, quick = sleep.submit(8), sleep.submit(0)
        slow.wait(timeout=0.01)
        with pytest.raises(TimeoutError):
            slow.result(timeout=0.01)
        with pytest.raises(UnfinishedRun):
            slow.state.result()
        order = [f.result() for f in as_completed([slow, quick])]
        called: list[PrefectFuture[Any]] = []
        slow.add_done_callback(called.append)
        return order, called == [slow]

    assert in_flow(runner, body) == ([0, 8], True)


def test_callbacks_may_wait_for_other_tasks(runner: RayTaskRunner) -> None:
    def body() -> Any:
        results: list[int] = []
        done = threading.Event()

        def then(future: PrefectFuture[float]) -> None:
            results.append(other.result())
            done.set()

        first = sleep.submit(0.3)
        first.add_done_callback(then)
        other = add.submit(first)
        assert done.wait(20)
        return results

    assert in_flow(runner, body) == [1.3]


def test_a_flow_may_return_futures(runner: RayTaskRunner) -> None:
    assert [s.result() for s in in_flow(runner, lambda: add.map([1, 2]))] == [2, 3]


def test_results_stay_in_the_cluster_until_asked_for(runner: RayTaskRunner) -> None:
    @task
    def big() -> bytes:
        return b"x" * 5_000_000

    def body() -> Any:
        futures = [big.submit() for _ in range(3)]
        wait(futures)
        lazy = ["result" not in vars(f.state.data) for f in futures]
        return all(lazy), len(futures[0].result()), length.submit(futures[1]).result()

    assert in_flow(runner, body) == (True, 5_000_000, 5_000_000)


def test_unawaited_tasks_end_before_the_flow_does(runner: RayTaskRunner, traces: Path) -> None:
    @task
    def late() -> None:
        time.sleep(0.5)
        (traces / "late").touch()

    in_flow(runner, lambda: late.submit() and None)
    assert (traces / "late").exists()


def test_closures_are_taken_as_they_are_at_the_submit(runner: RayTaskRunner) -> None:
    def body() -> Any:
        value = 1

        @task
        def read() -> int:
            return value

        first = read.submit()
        value = 2
        return first.result(), read.submit().result()

    assert in_flow(runner, body) == (1, 2)


class Array:
    """As numpy's: large ones are pickled out of band."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __reduce_ex__(self, _: Any) -> Any:
        return Array, (pickle.PickleBuffer(self.values),)


def test_arrays_are_taken_as_they_are_at_the_submit(joined: RealRay) -> None:
    """One buffer that was filled again for each submit gave [0, 5, 5, 5, 5, 5]."""

    @task
    def first(array: Array) -> int:
        return memoryview(array.values)[0]

    def body() -> Any:
        buffer = bytearray(100_000)
        before = sleep.submit(1)
        futures = []
        for i in range(6):
            buffer[0] = i
            futures.append(first.submit(Array(buffer), wait_for=[before]))
        return [f.result() for f in futures]

    assert in_flow(RayTaskRunner(max_in_flight=2), body) == [0, 1, 2, 3, 4, 5]


def test_references_in_values_are_let_go_with_them(runner: RayTaskRunner) -> None:
    """30 results that held references to 19 MiB each left 572 MiB in the store."""
    import ray

    @task
    def refers() -> dict[str, Any]:
        return {"ref": ray.put(b"x" * 2_000_000)}

    @task
    def reads(value: dict[str, Any]) -> int:
        return len(ray.get(value["ref"]))

    def body() -> Any:
        with remote_options(max_calls=1):  # its process would end, and take what it owns along
            first = refers.submit()
            first.wait()
        time.sleep(3)
        seen = reads.submit(first).result(), len(ray.get(first.result()["ref"]))
        ref = refers.submit().result()["ref"]
        del first
        gc.collect()
        return seen, len(ray.get(ref))

    assert in_flow(runner, body) == ((2_000_000, 2_000_000), 2_000_000)


def test_references_in_values_are_not_pinned(joined: RealRay) -> None:
    import ray

    from prefect_ray_worker.task_runner.pickling import pack, unpack

    ref = ray.put(b"x" * 1_000_000)
    packed = pack({"deep": [ref]})
    assert packed.refs == [ref]
    assert unpack(packed)["deep"][0] == ref
    counted = ray._private.worker.global_worker.core_worker.get_all_reference_counts
    name = ref.hex().encode()
    assert name in counted()
    del ref, packed
    gc.collect()
    deadline = time.monotonic() + 60
    while name in counted() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert name not in counted()


def test_more_than_the_limit_wait_in_the_driver(joined: RealRay) -> None:
    runner = RayTaskRunner(max_in_flight=7)
    in_flight: list[int] = []

    def body() -> Any:
        futures = add.map(range(60))
        dependants = add.map(futures)
        while not all(future.is_done for future in dependants):
            # The flow runs in a duplicate of its runner; both know its dispatcher.
            in_flight.extend(len(dispatcher._submitted) for dispatcher in runner._dispatchers)
            time.sleep(0.01)
        return sum(dependants.result())

    assert in_flow(runner, body) == sum(range(60)) + 120
    assert 0 < max(in_flight) <= 7


def test_what_cannot_be_pickled_is_named_at_the_submit(runner: RayTaskRunner) -> None:
    lock = threading.Lock()

    def helper() -> object:
        return lock

    @task
    def with_helper() -> None:
        helper()

    def body() -> Any:
        with pytest.raises(Unpicklable, match="uses the variable 'lock', a lock"):
            with_helper.submit()
        with pytest.raises(Unpicklable, match="Parameter 'value' of task 'type_name', a lock"):
            type_name.submit(lock)

    in_flow(runner, body)


def test_upstream_runs_are_drawn(runner: RayTaskRunner) -> None:
    def body() -> Any:
        value = add.submit(1_000_000).result()
        later = add.submit(value)
        waits = add.submit(5, wait_for=[later])
        wait([later, waits])
        return FlowRunContext.get().flow_run.id  # type: ignore[union-attr]

    runs = task_runs(in_flow(runner, body), 3)
    drawn = [(name, i.id) for run in runs for name, ins in run.task_inputs.items() for i in ins]  # type: ignore[union-attr]
    assert sorted(name for name, _ in drawn) == ["wait_for", "x"]
    assert {run_id for _, run_id in drawn} <= {run.id for run in runs}


def test_futures_are_hashable_and_pickle() -> None:
    from uuid import uuid4

    from prefect_ray_worker.task_runner.futures import DoneFuture, RayTaskFuture

    future: RayTaskFuture[int] = RayTaskFuture(uuid4())
    assert future in {future}
    with pytest.raises(TypeError, match="waits for its turn"):
        pickle.dumps(future)
    future.resolve(Completed(data=1))
    arrived = pickle.loads(pickle.dumps(future))
    assert isinstance(arrived, DoneFuture)
    assert arrived.result() == 1
