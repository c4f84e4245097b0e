"""What is submitted, when, from where, and what it waits for."""

import asyncio
import functools
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from prefect import allow_failure, flow, get_run_logger, task
from prefect.settings import PREFECT_TEST_SETTING, get_current_settings, temporary_settings
from prefect.states import Failed

LOCK = threading.Lock()


@task
def add(x: int) -> int:
    return x + 1


@task
def slowly(x: float) -> float:
    time.sleep(x)
    return x


@task
def fail() -> None:
    raise ValueError("no luck")


def _flow(runner: Any, body: Any) -> Any:
    return flow(body, name="behaves", task_runner=runner)()


def first_submits_from_several_threads(runner: Any) -> Any:
    async def body() -> Any:
        futures = await asyncio.gather(
            *(asyncio.to_thread(slowly.submit, 0.2 + i / 1000) for i in range(20))
        )
        return len({f.task_run_id for f in futures})

    ended: list[int] = []

    @flow(name="behaves", task_runner=runner, on_completion=[lambda *_: ended.append(1)])
    async def gathers() -> Any:
        return await body()

    return asyncio.run(gathers()), ended


def subflows_that_run_at_once(runner: Any) -> Any:
    @flow(task_runner=runner)
    async def short() -> float:
        return slowly.submit(0.1).result()

    @flow(task_runner=runner.duplicate())
    async def long() -> float:
        futures = [slowly.submit(0.3) for _ in range(4)]
        await asyncio.sleep(2)
        return sum(f.result() for f in [*futures, slowly.submit(0.2)])

    @flow
    async def parent() -> Any:
        return await asyncio.gather(short(), long())

    return asyncio.run(parent())


def forms_of_wait_for(runner: Any) -> Any:
    def body() -> Any:
        failed = fail.submit()
        one = add.submit(1)
        return [
            add.submit(1, wait_for=one).result(),
            add.submit(1, wait_for=(one, add.submit(2))).result(),
            add.submit(1, wait_for=allow_failure(failed)).result(),
            add.submit(1, wait_for=[allow_failure(failed), one]).result(),
            add.submit(1, wait_for=failed, return_state=True).name,
            [f.result() for f in add.map([1, 2], wait_for=allow_failure(failed))],
            [f.result() for f in add.map([1, 2], wait_for=one)],
        ]

    return _flow(runner, body)


def results_of_failures(runner: Any) -> Any:
    @task
    def says_failed() -> Any:
        return Failed(message="mine")

    def body() -> Any:
        found = [f.submit().result(raise_on_failure=False) for f in (says_failed, fail)]
        return [f"{type(r).__name__} {r}" for r in found]

    return _flow(runner, body)


def settings_of_nested_submits(runner: Any) -> Any:
    @task
    def setting() -> Any:
        return get_current_settings().testing.test_setting

    @task
    def outer() -> Any:
        before = setting.submit().result()
        with temporary_settings({PREFECT_TEST_SETTING: "inner"}):
            inside = setting.submit().result()
        with temporary_settings({PREFECT_TEST_SETTING: "other"}):
            other = setting.submit().result()
        return before, inside, other, setting.submit().result()

    def body() -> Any:
        with temporary_settings({PREFECT_TEST_SETTING: "flow"}):
            first = outer.submit().result()
        return first, outer.submit().result()

    return _flow(runner, body)


def nested_submits_of_a_task_that_cannot_be_pickled(runner: Any) -> Any:
    @task
    def outer(big: bytes) -> Any:
        return [add.submit(i).result() for i in range(4)], parent_of.submit().result()

    @task
    def parent_of() -> bool:
        get_run_logger().info("in a nested task")
        return True

    return _flow(runner, lambda: outer.submit(b"x" * 5_000_000).result())


def a_task_that_changes_between_submits(runner: Any) -> Any:
    class Adder:
        by = 1

        def __call__(self, x: int) -> int:
            return x + self.by

    adder = Adder()
    callable_task = task(adder, name="adder")
    partial_task = task(functools.partial(pow, 2), name="partial")

    def body() -> Any:
        first = callable_task.submit(1).result()
        adder.by = 10
        return first, callable_task.submit(1).result(), partial_task.submit(3).result()

    return _flow(runner, body)


MANY = list(range(300_000))


def a_hook_that_is_added_after_the_first_submit(runner: Any) -> Any:
    @task
    def hooked() -> int:
        return len(MANY)  # which takes long to pickle

    def body() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            before = hooked.submit()

            @hooked.on_completion
            def note(_: Any, run: Any, __: Any) -> None:
                (Path(folder) / str(run.id)).touch()

            after = hooked.submit()
            found = before.result(), after.result()
            return found, (Path(folder) / str(after.task_run_id)).exists()

    return _flow(runner, body)
