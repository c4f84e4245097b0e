"""What tasks import late from folders below the one that is shipped: here, the flow's own."""

from typing import Any

from prefect import flow, task


@task
def late() -> str:
    import beside

    return beside.CHOSEN


def _flow(runner: Any, body: Any) -> Any:
    return flow(body, name="behaves", task_runner=runner)()


def in_tasks_of_tasks(runner: Any) -> Any:
    @task
    def outer() -> str:
        return late.submit().result()

    return _flow(runner, lambda: (late.submit().result(), outer.submit().result()))


def in_subflows_with_a_runner_of_their_own(runner: Any) -> Any:
    @flow(task_runner=runner.duplicate())
    def sub() -> str:
        return late.submit().result()

    return _flow(runner, lambda: (sub(), late.submit().result()))


def in_subflows_of_tasks(runner: Any) -> Any:
    @flow
    def in_threads() -> str:
        return late.submit().result()

    @flow(task_runner=runner.duplicate())
    def with_a_runner() -> str:
        return late.submit().result()

    @task
    def outer() -> Any:
        return in_threads(), with_a_runner()

    return _flow(runner, lambda: outer.submit().result())
