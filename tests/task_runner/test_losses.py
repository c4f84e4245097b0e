"""Tasks whose process dies, and what cannot be sent: never lost, never taken for a success."""

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import CrashedRun, ObjectNotFound
from prefect.futures import wait
from prefect.states import Completed, Pending, Running
from prefect.utilities.annotations import quote
from ray.exceptions import WorkerCrashedError

from prefect_ray_worker import RayTaskRunner
from prefect_ray_worker.prefect_api.compat.tasks import new_run_id
from prefect_ray_worker.task_runner import losses
from prefect_ray_worker.task_runner.futures import RayTaskFuture
from prefect_ray_worker.task_runner.pending import PendingTask
from prefect_ray_worker.task_runner.task_end import TaskEnd, UnportableError
from tests.real_ray import RealRay
from tests.task_runner.api import logs, states, task_runs, wait_for_log
from tests.waiting import patience

pytestmark = pytest.mark.ray


@task
def add(x: int) -> int:
    return x + 1


@task
def die(folder: Path, how: str) -> None:
    with (folder / how).open("a") as file:
        file.write(".")
    if how == "exits":
        sys.exit(3)
    if how == "late":
        time.sleep(1)
    if how == "ends":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


@task
def flaky_process(folder: Path) -> str:
    with (folder / "tries").open("a") as file:
        file.write(".")
    if len((folder / "tries").read_text()) < 3:
        os._exit(1)
    return "third"


@task
def passes_on(value: str) -> str:
    return value


@task
def says_how_it_ends(future: Any) -> str:
    future.wait()
    return f"{future.state.name}: {future.state.message}"


def run_id() -> Any:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id


@pytest.mark.parametrize(
    "how",
    ["late", "ends", *(pytest.param(how, marks=pytest.mark.extra) for how in ("killed", "exits"))],
)
def test_a_task_whose_process_dies_is_crashed(
    runner: RayTaskRunner, tmp_path: Path, how: str
) -> None:
    ids: list[Any] = []

    @flow(task_runner=runner)
    def with_a_death() -> Any:
        ids.append(run_id())
        others = add.map([1, 2])
        dead = die.submit(tmp_path, how)
        dependants = [add.submit(dead), add.submit(1, wait_for=[dead])]
        dead.wait()
        for future in dependants:
            future.wait()
            assert future.state.name == "NotReady"
            assert str(dead.task_run_id) in (future.state.message or "")
        assert others.result() == [2, 3]
        return dead.result()

    with pytest.raises(CrashedRun):
        with_a_death()
    assert states(ids[0], 5) == ["Completed", "Completed", "Crashed", "NotReady", "NotReady"]
    crashed = next(r for r in task_runs(ids[0], 5) if r.state_name == "Crashed")
    assert crashed.state is not None
    said = "system exit" if how == "exits" else "process of the task has died"
    assert said in (crashed.state.message or "")
    # Ray would have run it three times more.
    assert (tmp_path / how).read_text() == "."
    if how != "exits":
        wait_for_log(ids[0], "has crashed: The process of the task has died")


@pytest.fixture
def said_by_ray() -> Iterator[list[str]]:
    """What Ray logs in this process. Its logger does not propagate, so `caplog` has none of it."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("ray").addHandler(handler)
    yield said
    logging.getLogger("ray").removeHandler(handler)


def test_infra_retries_are_seen_by_prefect(
    joined: RealRay, tmp_path: Path, said_by_ray: list[str]
) -> None:
    ids: list[Any] = []

    @flow(task_runner=RayTaskRunner(infra_retries=2))
    def retried() -> Any:
        ids.append(run_id())
        first = flaky_process.submit(tmp_path)
        after = [passes_on.submit(first), passes_on.submit("other", wait_for=[first])]
        inside = says_how_it_ends.submit(quote(first))
        # It has the future of the first try only.
        assert "With infra_retries, the run may be run again" in inside.result()
        return [future.result() for future in (first, *after)]

    assert retried() == ["third", "third", "other"]
    assert states(ids[0], 4) == ["Completed"] * 4
    wait_for_log(ids[0], "is run again, 0 more times")
    # Those that wait for it have lost nothing.
    again = [line for line in logs(ids[0]) if "is run again" in line]
    assert [line.split()[2] for line in again] == ["'flaky_process"] * 2
    gc.collect()
    # For the tries before.
    assert not [line for line in said_by_ray if "Unhandled error" in line]


def wait_for_state(future: RayTaskFuture[Any], name: str) -> None:
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            with suppress(ObjectNotFound):
                if client.read_task_run(future.task_run_id).state_name == name:
                    return
            time.sleep(0.1)
    raise AssertionError(f"The run never was {name}")


def test_a_clock_that_is_behind_does_not_hide_that_a_retry_has_succeeded() -> None:
    """The API dropped what seemed older than the retry, and the run stayed AwaitingRetry."""
    fields: dict[str, Any] = dict.fromkeys(PendingTask.__dataclass_fields__)
    future: RayTaskFuture[Any] = RayTaskFuture(new_run_id())
    pending = PendingTask(
        **{**fields, "task": add, "future": future, "tags": set(), "dependencies": {}}
    )
    begun = Running(timestamp=datetime.now(UTC) - timedelta(hours=1))
    losses._emit(losses._never_seen(pending), Pending(), begun)
    wait_for_state(future, "Running")
    losses.report_retry(pending, WorkerCrashedError())
    # Not now: the next try may be on a node whose clock is as far behind.
    assert pending.retried_at == begun.timestamp + timedelta(microseconds=1)
    end, _ = TaskEnd.of(Completed(data=5, timestamp=begun.timestamp))
    assert losses.seems_older_than_retry(pending, end)
    losses.report_again(pending, end, losses.known_by(pending, end))
    wait_for_state(future, "Completed")


class Picky(Exception):
    """As httpx, openai and others have them: it pickles, and cannot be unpickled."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def test_an_exception_that_does_not_unpickle_is_readable(runner: RayTaskRunner) -> None:
    @task
    def picky() -> None:
        raise Picky("no entry", code=403)

    @flow(task_runner=runner)
    def fails() -> None:
        with pytest.raises(UnportableError, match=r"Picky: no entry") as caught:
            picky.submit().result()
        assert caught.value.original_type.endswith("Picky")
        assert 'raise Picky("no entry", code=403)' in caught.value.original_traceback

    fails()


def test_a_result_that_cannot_be_pickled_is_a_failure_with_a_reason(runner: RayTaskRunner) -> None:
    ids: list[Any] = []

    @task
    def unsendable() -> Any:
        import threading

        return threading.Lock()

    @flow(task_runner=runner)
    def fails() -> None:
        ids.append(run_id())
        with pytest.raises(TypeError, match="a lock, cannot be pickled"):
            unsendable.submit().result()

    fails()
    assert states(ids[0], 1) == ["Failed"]


def test_tasks_that_cannot_be_loaded_say_so_soon(joined: RealRay) -> None:
    ids: list[Any] = []

    @flow(task_runner=RayTaskRunner(max_in_flight=8))
    def fails() -> None:
        ids.append(run_id())
        futures = unloadable.map([Unloadable()] * 80)
        # They have told the API nothing that could be waited for.
        assert not wait(futures, timeout=10 * patience()).not_done

    @task
    def unloadable(value: Any) -> None: ...

    fails()
    for run in task_runs(ids[0], 80):
        assert run.state is not None
        assert run.state.name == "Crashed"
        assert "could not be loaded" in (run.state.message or "")
        assert "No module named 'nowhere'" in (run.state.message or "")


class Unloadable:
    def __reduce__(self) -> Any:
        return __import__, ("nowhere",) if TaskRunContext.get() is None else ("os",)


@pytest.mark.extra
def test_logs_are_there_with_a_hundred_lines(runner: RayTaskRunner) -> None:
    ids: list[Any] = []

    @task
    def speaks(number: int) -> None:
        get_run_logger().info("line %s", number)

    @flow(task_runner=runner)
    def speaking() -> None:
        ids.append(run_id())
        speaks.map(range(100)).wait()

    speaking()
    # No waiting: they are sent before the flow ends.
    said = logs(ids[0])
    assert {f"line {i}" for i in range(100)} <= set(said)


@task
def starts_another(folder: Path, name: str, *, dies: bool) -> None:
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    (folder / name).write_text(str(process.pid))
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    while not (folder / "seen").exists():
        time.sleep(0.05)


def test_what_a_killed_task_has_started_ends_with_it(
    runner: RayTaskRunner, tmp_path: Path, said_by_ray: list[str]
) -> None:
    """A process in a session of its own survived its job, and Ray added errors of its own."""

    def is_there(name: str) -> bool:
        pid = int((tmp_path / name).read_text())
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    @flow(task_runner=runner)
    def loses_one() -> Any:
        other = starts_another.submit(tmp_path, "other", dies=False)
        lost = starts_another.submit(tmp_path, "lost", dies=True)
        lost.wait()
        deadline = time.monotonic() + 60
        while is_there("lost"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Its task goes on.
        found = is_there("other")
        (tmp_path / "seen").touch()
        other.wait()
        return lost.state.name, found

    try:
        assert loses_one() == ("Crashed", True)
        gc.collect()
        assert not [line for line in said_by_ray if "Unhandled error" in line]
    finally:
        with suppress(ProcessLookupError):
            os.kill(int((tmp_path / "other").read_text()), signal.SIGKILL)
