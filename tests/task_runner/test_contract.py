"""What Prefect asks of a task runner, and what its users know from ThreadPoolTaskRunner."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect import allow_failure, flow, get_run_logger, tags, task, unmapped
from prefect.context import FlowRunContext
from prefect.futures import wait
from prefect.results import get_result_store
from prefect.runtime import flow_run as runtime_flow_run
from prefect.runtime import task_run as runtime_task_run
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.transactions import transaction
from prefect.utilities.annotations import quote

from prefect_ray_worker import RayTaskRunner
from tests.task_runner.api import states
from tests.task_runner.tasks import (
    add,
    add_async,
    fail,
    in_flow,
    pid,
    sleep,
    sleep_async,
    type_name,
)
from tests.waiting import patience

pytestmark = pytest.mark.ray


def test_duplicates_are_equal_and_survive_pickling() -> None:
    runner = RayTaskRunner(address="10.0.0.1:6379", init_kwargs={"num_cpus": 1}, infra_retries=2)
    for other in (runner.duplicate(), cloudpickle.loads(cloudpickle.dumps(runner))):
        assert other == runner
        assert other is not runner
    assert runner != RayTaskRunner()
    assert runner.name == "ray"


@pytest.mark.parametrize("wrong", [{"infra_retries": -1}, {"max_in_flight": 0}])
def test_wrong_arguments_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        RayTaskRunner(**wrong)  # type: ignore[arg-type]


def test_it_must_be_started() -> None:
    with pytest.raises(RuntimeError, match="must be started"):
        RayTaskRunner().submit(add, {"x": 1})


def test_it_works_without_a_flow(runner: RayTaskRunner) -> None:
    with runner:
        assert runner.submit(add, {"x": 1}).result() == 2
        assert runner.map(add, {"x": [1, 2]}).result() == [2, 3]


def test_tasks_run_in_other_processes(runner: RayTaskRunner) -> None:
    assert in_flow(runner, lambda: pid.submit().result()) != os.getpid()


def test_submit_and_map(runner: RayTaskRunner) -> None:
    def body() -> Any:
        upstream = add.submit(1)
        chain = add.submit(upstream, y=add.submit(upstream))
        nested = total.submit({"all": [add.map(range(5)), (upstream,)]})
        mapped = add.map(add.map([1, 2, 3]), y=unmapped(10))
        return chain.result(), nested.result(), mapped.result(), add_async.submit(chain).result()

    assert in_flow(runner, body) == (5, 17, [12, 13, 14], 6)


@task
def total(values: dict[str, Any]) -> int:
    return sum(values["all"][0]) + sum(values["all"][1])


async def test_async_flows(runner: RayTaskRunner) -> None:
    @flow(task_runner=runner)
    async def asynchronous() -> list[int]:
        return [f.result() for f in add_async.map(range(20))]

    assert await asynchronous() == list(range(1, 21))


def test_failures_reach_dependants_as_prefect_has_it(runner: RayTaskRunner) -> None:
    def body() -> Any:
        failed = fail.submit()
        states = [
            add.submit(failed, return_state=True),
            add.submit(1, wait_for=[failed], return_state=True),
            is_error.submit(allow_failure(failed), return_state=True),
            add.submit(add.submit(failed), return_state=True),
        ]
        with pytest.raises(ValueError, match="no luck"):
            failed.result()
        assert runtime_flow_run.id
        return [s.name for s in states], str(failed.task_run_id) in states[0].message

    assert in_flow(runner, body) == (["NotReady", "NotReady", "Completed", "NotReady"], True)


@task
def is_error(exc: Any) -> bool:
    assert isinstance(exc, ValueError)
    return True


def test_a_failed_task_fails_the_flow_and_is_shown(runner: RayTaskRunner) -> None:
    def body() -> Any:
        ids.append(FlowRunContext.get().flow_run.id)  # type: ignore[union-attr]
        futures = [fail.submit(), add.submit(1)]
        add.submit(futures[0])
        return futures

    ids: list[Any] = []
    # A flow that returns futures returns their states, as with other runners.
    assert [s.name for s in in_flow(runner, body)] == ["Failed", "Completed"]
    assert states(ids[0], 3) == ["Completed", "Failed", "NotReady"]


def test_the_traceback_of_the_task_is_there(runner: RayTaskRunner) -> None:
    def body() -> str:
        exc = fail.submit().result(raise_on_failure=False)
        return str(exc.__cause__)

    assert 'raise ValueError("no luck")' in in_flow(runner, body)


def test_quoted_futures_are_no_dependencies(runner: RayTaskRunner, tmp_path: Path) -> None:
    @task
    def slow() -> None:
        deadline = time.monotonic() + 30
        while not (tmp_path / "seen").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def body() -> Any:
        waits = slow.submit()
        kind = type_name.submit(quote(waits)).result()
        has_waited = waits.is_done
        (tmp_path / "seen").touch()
        waits.wait()
        return kind, has_waited

    assert in_flow(runner, body) == ("RayTaskFuture", False)


def test_futures_of_other_runners_do_not_block_the_submit(runner: RayTaskRunner) -> None:
    def body() -> Any:
        with ThreadPoolTaskRunner() as threads:
            slow = threads.submit(sleep, {"seconds": 4})
            begun = time.monotonic()
            after = add.submit(slow, wait_for=[slow])
            took = time.monotonic() - begun
            return after.result(), took

    result, took = in_flow(runner, body)
    assert result == 5
    assert took < 3 * patience()


def test_nested_submits_and_subflows(runner: RayTaskRunner) -> None:
    @task
    def outer(x: int) -> int:
        return sum(add.map([x, x]).result()) + add.submit(x).result()

    @flow(task_runner=runner)
    def inner() -> int:
        return add.submit(100).result()

    @task
    def with_subflow() -> int:
        return inner()

    def body() -> Any:
        return outer.submit(1).result(), inner(), with_subflow.submit().result()

    assert in_flow(runner, body) == (6, 101, 101)


def test_context_of_a_task(runner: RayTaskRunner) -> None:
    @task(task_run_name="named-{x}")
    def look(x: int) -> dict[str, Any]:
        context = FlowRunContext.get()
        assert context is not None
        return {
            "name": runtime_task_run.name,
            "tags": sorted(runtime_task_run.tags),
            "flow": runtime_flow_run.flow_name,
            "parameters": context.parameters,
        }

    lock = threading.Lock()

    @flow(task_runner=runner)
    def with_lock(text: str, unpicklable: Any) -> Any:
        # A body that refers to what cannot be pickled, and such a parameter, are no obstacle.
        with lock, tags("outer"):
            first = look.submit(1)
            with tags("inner"):
                second = look.submit(2)
            return first.result(), second.result()

    first, second = with_lock("x" * 400_000, threading.Lock())
    assert first["name"] == "named-1"
    assert first["flow"] == "with-lock"
    assert first["tags"] == ["outer"]
    assert second["tags"] == ["inner", "outer"]
    assert len(first["parameters"]["text"]) == 400_000


def test_retries_timeouts_and_options(runner: RayTaskRunner, traces: Path) -> None:
    @task
    def flaky(name: str) -> int:
        with (traces / name).open("a") as file:
            file.write(".")
        count = len((traces / name).read_text())
        if count < 3:
            raise ValueError(count)
        return count

    def body() -> Any:
        retried = flaky.with_options(retries=2, retry_delay_seconds=0.1)
        late = sleep.with_options(timeout_seconds=0.5).submit(20, return_state=True)
        late_async = sleep_async.with_options(timeout_seconds=0.5).submit(20, return_state=True)
        once = flaky.submit("once", return_state=True)
        return retried.submit("a").result(), late.name, late_async.name, once.name

    begun = time.monotonic()
    assert in_flow(runner, body) == (3, "TimedOut", "TimedOut", "Failed")
    assert time.monotonic() - begun < 15 * patience()
    assert (traces / "once").read_text() == "."


def test_caching_hooks_and_transactions(runner: RayTaskRunner, traces: Path) -> None:
    def note(name: str) -> None:
        with (traces / name).open("a") as file:
            file.write(".")

    from prefect.cache_policies import INPUTS

    @task(cache_policy=INPUTS, persist_result=True, result_storage=None)
    def cached(x: int) -> int:
        note("ran")
        return x

    @task(on_completion=[lambda *_: note("completed")], on_failure=[lambda *_: note("failed")])
    def hooked(fails: bool) -> None:
        if fails:
            raise ValueError

    @task
    def in_transaction() -> None:
        @task
        def staged() -> None: ...

        @staged.on_rollback
        def undo(_: Any) -> None:
            note("undone")

        with transaction():
            staged()
            raise ValueError

    def body() -> Any:
        number = time.time_ns()
        first = cached.submit(number, return_state=True)
        again = cached.submit(number, return_state=True)
        wait([hooked.submit(False), hooked.submit(True), in_transaction.submit()])
        return first.name, again.name, again.result() == number

    assert in_flow(runner, body) == ("Completed", "Cached", True)
    assert {p.name: p.read_text() for p in traces.iterdir() if p.is_file()} == {
        "ran": ".",
        "completed": ".",
        "failed": ".",
        "undone": ".",
    }


def test_a_transaction_of_the_users_is_found_around_any_number_of_tasks(
    runner: RayTaskRunner,
) -> None:
    @task
    def submits() -> int:
        return add.submit(1).result()

    @task
    def calls() -> int:
        return submits()

    @task
    def opens_one() -> int:
        # As an engine opens them: with a key, a store and the logger of the run.
        with transaction(key="key", store=get_result_store(), logger=get_run_logger()):
            return calls()

    def name_of_error(act: Any) -> str:
        try:
            return act()
        except RuntimeError as exc:
            return type(exc).__name__

    def body() -> Any:
        with transaction():
            around = name_of_error(calls)
        inside = [name_of_error(opens_one), name_of_error(opens_one.submit().result)]
        return around, inside, calls(), calls.submit().result()

    assert in_flow(runner, body) == ("TransactionAround", ["TransactionAround"] * 2, 2, 2)
