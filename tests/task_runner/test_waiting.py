"""`wait`, `as_completed` and lists of futures: as Prefect's other futures have them."""

import os
import threading
import time
from contextvars import copy_context
from multiprocessing import get_context
from typing import Any

import pytest
from prefect import task
from prefect.futures import PrefectFutureList, as_completed, wait

from prefect_ray_worker import RayTaskRunner
from tests.task_runner.api import task_runs
from tests.task_runner.tasks import add, fail, in_flow, sleep
from tests.task_runner.test_losses import run_id

pytestmark = pytest.mark.ray


def test_wait_tells_done_from_not_done(runner: RayTaskRunner) -> None:
    def body() -> Any:
        quick, slow = sleep.submit(0), sleep.submit(6)
        quick.wait()
        before = time.monotonic()
        done, not_done = wait([quick, slow], timeout=0.2)
        took = time.monotonic() - before
        return done == {quick}, not_done == {slow}, took < 2

    assert in_flow(runner, body) == (True, True, True)


@pytest.mark.parametrize("timeout", [pytest.param(0, marks=pytest.mark.extra), 0.2])
def test_as_completed_has_a_time_limit(runner: RayTaskRunner, timeout: float) -> None:
    def body() -> Any:
        quick, slow = sleep.submit(0), sleep.submit(4)
        quick.wait()
        with pytest.raises(TimeoutError, match="futures unfinished"):
            list(as_completed([quick, slow], timeout=timeout))
        return True

    assert in_flow(runner, body)


def test_as_completed_works_in_another_thread(runner: RayTaskRunner) -> None:
    def body() -> Any:
        futures = add.map([1, 2, 3])
        found: list[int] = []

        def collect() -> None:
            found.extend(f.result() for f in as_completed(list(futures)))

        thread = threading.Thread(target=collect)
        thread.start()
        thread.join(30)
        return sorted(found)

    assert in_flow(runner, body) == [2, 3, 4]


def test_lists_keep_their_order_and_raise_the_first_failure(runner: RayTaskRunner) -> None:
    def body() -> Any:
        slow, quick = sleep.submit(1), sleep.submit(0)
        results = PrefectFutureList([slow, quick, slow]).result()
        with pytest.raises(ValueError, match="no luck"):
            PrefectFutureList([quick, fail.submit()]).result()
        kept = PrefectFutureList([fail.submit(), quick]).result(raise_on_failure=False)
        with pytest.raises(TimeoutError):
            PrefectFutureList([sleep.submit(3)]).result(timeout=0.01)
        return results, [type(r).__name__ for r in kept]

    assert in_flow(runner, body) == ([1, 0, 1], ["ValueError", "int"])


def test_a_timeout_of_the_task_itself_is_not_taken_for_one_of_waiting(
    runner: RayTaskRunner,
) -> None:
    @task
    def times_out() -> None:
        raise TimeoutError("of the task")

    def body() -> None:
        with pytest.raises(TimeoutError, match="of the task"):
            times_out.submit().result(timeout=60)

    in_flow(runner, body)


def test_callbacks_are_called_once_with_the_future(runner: RayTaskRunner) -> None:
    def body() -> Any:
        calls: list[Any] = []
        future = add.submit(1)
        future.add_done_callback(calls.append)
        future._add_prefect_done_callback(lambda f: calls.append(f))
        future.wait()
        deadline = time.monotonic() + 60
        while len(calls) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        future.add_done_callback(calls.append)
        return len(calls), all(call is future for call in calls)

    assert in_flow(runner, body) == (3, True)


def test_a_future_may_resolve_to_a_list_that_is_mapped(runner: RayTaskRunner) -> None:
    @task
    def numbers() -> list[int]:
        return [1, 2, 3]

    assert in_flow(runner, lambda: add.map(numbers.submit()).result()) == [2, 3, 4]


def test_cancel_all_of_the_original_reaches_what_a_duplicate_has_submitted(
    runner: RayTaskRunner,
) -> None:
    def body() -> Any:
        future = sleep.submit(100)
        wait([future], timeout=1)
        runner.cancel_all()
        future.wait(timeout=10)
        return future.state.name

    assert in_flow(runner, body) in ("Crashed", "Cancelled")


def test_two_flows_in_one_process_do_not_meet(runner: RayTaskRunner) -> None:
    found: dict[str, Any] = {}

    def run(name: str, number: int) -> None:
        found[name] = in_flow(runner.duplicate(), lambda: add.map([number] * 20).result())

    # In contexts like ours, which have the settings.
    runs = [(copy_context(), str(i), i) for i in range(2)]
    threads = [threading.Thread(target=c.run, args=(run, *args)) for c, *args in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {"0": [1] * 20, "1": [2] * 20}


@pytest.mark.parametrize(
    "waits",
    ["result", *(pytest.param(way, marks=pytest.mark.extra) for way in ("wait", "as_completed"))],
)
def test_the_time_limit_of_a_task_holds_while_it_waits_for_its_own(
    runner: RayTaskRunner, waits: str
) -> None:
    ids: list[Any] = []

    @task(timeout_seconds=1)
    def outer() -> None:
        futures = [sleep.submit(4)]
        if waits == "result":
            futures[0].result()
        elif waits == "wait":
            wait(futures)
        else:
            list(as_completed(futures))

    def body() -> Any:
        ids.append(run_id())
        return outer.submit(return_state=True).name

    assert in_flow(runner, body) == "TimedOut"
    limited, its_own = (run.state for run in task_runs(ids[0], 2))
    assert limited is not None
    assert its_own is not None
    assert (limited.name, its_own.name) == ("TimedOut", "Completed")
    assert limited.timestamp < its_own.timestamp


def test_a_process_that_a_task_forks_waits_without_ray(runner: RayTaskRunner) -> None:
    """It shares the task's connection to the raylet, which would take the task for blocked."""

    @task
    def forks() -> tuple[int, int | None]:
        from prefect_ray_worker.task_runner.waiting import OpenRefs

        open_one = sleep.submit(1)
        process = get_context("fork").Process(target=lambda: os._exit(len(OpenRefs.first())))
        process.start()
        process.join(60)
        number = len(OpenRefs.first())
        open_one.wait()
        return number, process.exitcode

    assert in_flow(runner, lambda: forks.submit().result()) == (1, 0)
