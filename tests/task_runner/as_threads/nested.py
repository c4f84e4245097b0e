"""Tasks that submit tasks, and wait for them or not, where there are fewer CPUs than tasks."""

import asyncio
from typing import Any

from prefect import flow, task
from prefect.futures import as_completed, wait


@task
def inner(x: int) -> int:
    return x + 1


@task
def middle(x: int) -> int:
    return inner.submit(x).result()


def _flow(runner: Any, body: Any) -> Any:
    return flow(body, name="behaves", task_runner=runner)()


def result_in_as_many_tasks_as_there_are_cpus(runner: Any) -> Any:
    return _flow(runner, lambda: middle.map(range(2)).result())


def three_levels(runner: Any) -> Any:
    @task
    def outer(x: int) -> int:
        return sum(middle.map([x, x]).result())

    return _flow(runner, lambda: outer.map(range(2)).result())


def a_task_that_calls_a_task_that_submits(runner: Any) -> Any:
    @task
    def calls(x: int) -> int:
        return middle(x)

    return _flow(runner, lambda: [calls(1), calls.submit(1).result()])


def an_async_task_that_calls_a_task_that_submits(runner: Any) -> Any:
    @task
    async def submits(x: int) -> int:
        return inner.submit(x).result()

    @task
    async def calls(x: int) -> int:
        return await submits(x)

    async def body() -> Any:
        return [await calls(1), calls.submit(1).result()]

    return asyncio.run(_flow(runner, body))


def a_task_that_calls_a_flow_with_a_task_that_submits(runner: Any) -> Any:
    @flow(task_runner=runner.duplicate())
    def below(x: int) -> int:
        return middle(x)

    @task
    def calls(x: int) -> int:
        return below(x)

    return _flow(runner, lambda: [calls(1), calls.submit(1).result()])


def wait_with_and_without_a_time_limit(runner: Any) -> Any:
    @task
    def outer(x: int) -> int:
        futures = middle.map([x, x])
        wait(futures, timeout=60)
        more = middle.map([x, x])
        more.wait()
        return sum(f.result() for f in (*futures, *more))

    return _flow(runner, lambda: outer.map(range(2)).result())


def as_completed_in_tasks(runner: Any) -> Any:
    @task
    def outer(x: int) -> int:
        return sum(f.result() for f in as_completed(list(middle.map([x, x]))))

    return _flow(runner, lambda: outer.map(range(2)).result())


def tasks_that_are_not_waited_for(runner: Any) -> Any:
    @task
    def outer(x: int) -> int:
        middle.map([x, x])
        return x

    return _flow(runner, lambda: outer.map(range(2)).result())


def futures_as_parameters_of_nested_submits(runner: Any) -> Any:
    @task
    def outer(x: int) -> int:
        first = inner.submit(x)
        return inner.submit(first, wait_for=[inner.submit(x)]).result()

    return _flow(runner, lambda: outer.map(range(2)).result())


def subflows_in_tasks(runner: Any) -> Any:
    @flow(task_runner=runner)
    def sub(x: int) -> int:
        middle.submit(x)
        return sum(middle.map([x, x]).result())

    @task
    def outer(x: int) -> int:
        return sub(x)

    return _flow(runner, lambda: outer.map(range(2)).result())


def async_tasks(runner: Any) -> Any:
    @task
    async def outer(x: int) -> int:
        await asyncio.sleep(0)
        return middle.submit(x).result()

    return _flow(runner, lambda: outer.map(range(2)).result())


def tasks_with_a_time_limit(runner: Any) -> Any:
    @task(timeout_seconds=60)
    def outer(x: int) -> int:
        return middle.submit(x).result(timeout=50)

    return _flow(runner, lambda: outer.map(range(2)).result())
