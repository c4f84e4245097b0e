"""Many tasks, and large ones: bounded in flight, little memory in the driver, few processes."""

import time
from typing import Any

import psutil
import pytest
from prefect import get_run_logger, task
from prefect.futures import wait

from prefect_ray_worker import RayTaskRunner, remote_options
from tests.real_ray import RealRay, marked
from tests.task_runner.api import logs
from tests.task_runner.tasks import add, in_flow, length, sleep
from tests.task_runner.test_losses import run_id

pytestmark = [pytest.mark.ray, pytest.mark.extra, pytest.mark.timeout(600)]

MANY = 1_000
KB = 1_000


def rss() -> int:
    return psutil.Process().memory_info().rss


def test_a_large_map_costs_the_driver_little_for_each_task(joined: RealRay) -> None:
    runner = RayTaskRunner(max_in_flight=200)
    most: list[int] = []

    def body() -> Any:
        held = add.map(range(MANY // 2))
        wait(held)  # what the first tasks cost once is not what a further one costs
        before = rss()
        futures = add.map(range(MANY))
        while not all(f.is_done for f in futures):
            # The flow runs in a duplicate of its runner; both know its dispatcher.
            most.extend(len(dispatcher._submitted) for dispatcher in runner._dispatchers)
            time.sleep(0.05)
        return futures.result()[-1], (rss() - before) / MANY

    last, cost = in_flow(runner, body)
    assert last == MANY
    assert max(most) <= 200
    assert cost < 25 * KB


def test_the_driver_keeps_nothing_of_tasks_whose_futures_are_let_go(joined: RealRay) -> None:
    def body() -> Any:
        sizes: list[int] = []
        for _ in range(9):
            wait(add.map(range(MANY // 2)))
            sizes.append(rss())
        # What Ray and Prefect make once, they make in the first rounds.
        return min(sizes[-2:]) - min(sizes[2:4])

    assert in_flow(RayTaskRunner(max_in_flight=200), body) < 20_000 * KB


def test_large_results_do_not_pass_through_the_driver(runner: RayTaskRunner) -> None:
    @task
    def large(number: int) -> bytes:
        return bytes([number]) * 10_000_000

    def body() -> Any:
        before = rss()
        futures = [large.submit(i) for i in range(40)]
        lengths = length.map(futures)
        wait(futures)
        assert lengths.result() == [10_000_000] * 40
        return rss() - before

    assert in_flow(runner, body) < 40_000_000


def test_tasks_that_wait_have_no_process(cluster: RealRay, runner: RayTaskRunner) -> None:
    def workers() -> int:
        names = [p.name() for p in marked(str(cluster.temp_dir))]
        return sum(name.startswith("ray::") for name in names)

    def body() -> Any:
        before = workers()
        slow = sleep.submit(4)
        futures = [add.submit(1, wait_for=[slow]) for _ in range(500)]
        most = before
        while not slow.is_done:
            most = max(most, workers())
            time.sleep(0.2)
        wait(futures)
        return before, most

    before, most = in_flow(runner, body)
    assert most <= max(before, 4) + 4


def test_waiting_for_each_other_with_a_scarce_resource_is_no_deadlock(
    runner: RayTaskRunner,
) -> None:
    def body() -> Any:
        with remote_options(resources={"seat": 1}):
            first = last = sleep.submit(1)
            for number in range(20):
                last = add.submit(number, wait_for=[first, last])
            return last.result()

    assert in_flow(runner, body) == 20


def test_nothing_is_lost_of_a_thousand_tasks(runner: RayTaskRunner) -> None:
    ids: list[Any] = []

    @task
    def speaks(number: int) -> None:
        get_run_logger().info("line %s", number)

    def body() -> None:
        ids.append(run_id())
        speaks.map(range(1_000)).wait()

    in_flow(runner, body)
    # No waiting: they are sent before the flow ends.
    assert {f"line {i}" for i in range(1_000)} <= set(logs(ids[0]))
