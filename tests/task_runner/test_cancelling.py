"""Flows that are cancelled, fail or run out of time take their tasks with them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow, task
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker import RayTaskRunner
from prefect_ray_worker.task_runner.execution import INTERRUPTED
from prefect_ray_worker.task_runner.session import signal_handlers_kept
from tests.task_runner.api import await_known, logs, task_runs
from tests.task_runner.tasks import sleep
from tests.task_runner.test_losses import run_id
from tests.waiting import patience

pytestmark = pytest.mark.ray

FOREVER = 120


def note_and(folder: Path, name: str, wait: Callable[[], Any]) -> None:
    (folder / name).write_text(str(os.getpid()))
    wait()


@task
def sleeps(folder: Path) -> None:
    note_and(folder, "sleeps", lambda: time.sleep(FOREVER))


@task
async def sleeps_async(folder: Path) -> None:
    import asyncio

    note_and(folder, "sleeps_async", lambda: None)
    await asyncio.sleep(FOREVER)


@task
def computes(folder: Path) -> None:
    def loop() -> None:
        while True:
            pass

    note_and(folder, "computes", loop)


@task
def ignores(folder: Path) -> None:
    def stubborn() -> None:
        while True:
            try:
                time.sleep(FOREVER)
            except BaseException:
                continue

    note_and(folder, "ignores", stubborn)


GENTLE = (sleeps, sleeps_async, computes)


def begun(folder: Path, *tasks: Any) -> list[int]:
    """Wait until tasks have begun; return the ids of their processes."""
    deadline = time.monotonic() + 100
    files = [folder / t.name for t in tasks]
    while not all(f.exists() and f.read_text() for f in files):
        assert time.monotonic() < deadline, [f for f in files if not f.exists()]
        time.sleep(0.05)
    return [int(f.read_text()) for f in files]


def test_a_flow_that_fails_cancels_what_runs(runner: RayTaskRunner, tmp_path: Path) -> None:
    ids: list[Any] = []
    moments: list[float] = []

    @flow(task_runner=runner)
    def fails() -> None:
        ids.append(run_id())
        for each in GENTLE:
            each.submit(tmp_path)
        begun(tmp_path, *GENTLE)
        moments.append(time.monotonic())
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fails()
    assert time.monotonic() - moments[0] < 3 * patience()
    # They have reacted to the interrupt: none had to be killed.
    messages = {r.state.message for r in task_runs(ids[0], 3) if r.state and r.state.is_cancelled()}
    assert messages == {INTERRUPTED}
    assert not [line for line in logs(ids[0]) if "Crash" in line]


def test_a_flow_that_is_retried_cancels_what_its_last_attempt_has_left(
    runner: RayTaskRunner,
) -> None:
    """The retry waited for the tasks of the failed attempt, so a task that hung blocked it."""
    left: list[Any] = []

    @flow(task_runner=runner, retries=1)
    def fails_once() -> str:
        if not left:
            left.append(sleep.submit(FOREVER))
            raise ValueError("once")
        return left[0].state.name

    assert fails_once() == "Cancelled"


def test_a_flow_that_fails_leaves_the_tasks_of_another_alone(
    runner: RayTaskRunner, tmp_path: Path
) -> None:
    is_queued = threading.Event()

    @flow(task_runner=runner.duplicate())
    def fails() -> None:
        for number in range(4):
            (tmp_path / str(number)).mkdir()
            sleeps.submit(tmp_path / str(number))
        is_queued.wait(100)
        raise ValueError("enough")

    @flow(task_runner=runner)
    def goes_on() -> set[str]:
        for number in range(4):
            begun(tmp_path / str(number), sleeps)
        futures = sleep.map([0.3] * 12)
        is_queued.set()
        futures.wait()
        return {f"{future.state.name}: {future.state.message}" for future in futures}

    failing = threading.Thread(target=copy_context().run, args=(lambda: fails(return_state=True),))
    failing.start()
    # Ray gives the processes of cancelled tasks the next ones within milliseconds.
    assert goes_on() == {"Completed: None"}
    failing.join(60)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("is_known", [False, True], ids=["at once", "once Prefect knows it"])
def test_what_ignores_the_interrupt_is_killed(
    runner: RayTaskRunner, tmp_path: Path, is_known: bool
) -> None:
    ids: list[Any] = []

    @task
    def submits_stubborn() -> None:
        ignores.submit(tmp_path).wait()

    @flow(task_runner=runner)
    def fails() -> None:
        ids.append(run_id())
        submits_stubborn.submit()
        begun(tmp_path, ignores)
        if is_known:
            await_known(ids[0], 2)
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fails()
    (pid,) = begun(tmp_path, ignores)
    assert is_gone(pid)
    # A nested run that was killed before it could say that it began is unknown to anybody.
    runs = task_runs(ids[0], 2 if is_known else 1, at_least=True)
    assert {r.state_name for r in runs} <= {"Cancelled", "Crashed"}


@pytest.mark.timeout(120, method="thread")  # Prefect wants the alarm signal for itself
@pytest.mark.extra
def test_a_flow_that_runs_out_of_time_cancels_what_runs(
    runner: RayTaskRunner, tmp_path: Path
) -> None:
    futures: list[Any] = []

    @flow(task_runner=runner, timeout_seconds=5)
    def runs_out_of_time() -> None:
        futures.extend(each.submit(tmp_path) for each in GENTLE)
        futures[0].wait()

    before = time.monotonic()
    with pytest.raises(TimeoutError):
        runs_out_of_time()
    assert time.monotonic() - before < 12 * patience()
    assert {f.state.name for f in futures} <= {"Crashed", "Cancelled"}


def test_queued_tasks_never_begin(runner: RayTaskRunner, tmp_path: Path) -> None:
    ids: list[Any] = []

    @flow(task_runner=runner)
    def fails() -> Any:
        ids.append(run_id())
        sleeps.submit(tmp_path)
        queued = [sleep.submit(0.1, wait_for=[sleep.submit(FOREVER)]) for _ in range(20)]
        begun(tmp_path, sleeps)
        futures.extend(queued)
        raise ValueError("enough")

    futures: list[Any] = []
    before = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        fails()
    assert {f.state.name for f in futures} == {"Cancelled"}
    assert time.monotonic() - before < 60 * patience()
    assert {r.state_name for r in task_runs(ids[0], 1, at_least=True)} <= {"Crashed", "Cancelled"}


def test_prefects_signal_handler_survives() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signal_handlers_kept():
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is before


SCRIPT = """
import sys, time
from pathlib import Path
from prefect import flow, task
from prefect.utilities.engine import can_ack_control_intent
from prefect_ray_worker import RayTaskRunner

@task
def sleeps(folder):
    import os
    (Path(folder) / "sleeps").write_text(str(os.getpid()))
    time.sleep(120)

@flow(task_runner=RayTaskRunner("local", {"num_cpus": 1, "include_dashboard": False}))
def cancelled(folder):
    assert can_ack_control_intent()
    sleeps.submit(folder).wait()

if __name__ == "__main__":
    cancelled(sys.argv[1])
"""


def test_sigterm_ends_flow_tasks_and_the_ray_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # Without it, Prefect would start a server of its own, which outlives a process that is ended.
    env = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    process = subprocess.Popen([sys.executable, script, tmp_path], env=env, start_new_session=True)
    try:
        (pid,) = begun(tmp_path, sleeps)
        process.send_signal(signal.SIGTERM)
        process.wait(15)
    finally:
        if process.poll() is None:
            process.kill()
    gone = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
    assert not gone[1]
