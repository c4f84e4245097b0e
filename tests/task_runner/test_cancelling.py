"""Flows that are cancelled, fail or run out of time take their tasks with them."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow, task

from prefect_ray_worker import RayTaskRunner
from prefect_ray_worker.task_runner.connection import signal_handlers_kept
from tests.task_runner.api import task_runs
from tests.task_runner.test_losses import run_id

pytestmark = pytest.mark.ray

FOREVER = 120


def note_and(folder: Path, name: str, wait: Callable[[], Any]) -> None:
    import os

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
    assert time.monotonic() - moments[0] < 3
    deadline = time.monotonic() + 10
    while True:
        names = {r.name.rpartition("-")[0]: r.state_name for r in task_runs(ids[0], 3, final=False)}
        if set(names.values()) <= {"Crashed", "Cancelled"} or time.monotonic() > deadline:
            break
    assert set(names.values()) <= {"Crashed", "Cancelled"}, names


@pytest.mark.timeout(120, method="thread")  # Prefect wants the alarm signal for itself
def test_what_ignores_the_interrupt_is_killed(runner: RayTaskRunner, tmp_path: Path) -> None:
    ids: list[Any] = []

    @flow(task_runner=runner, timeout_seconds=8)
    def runs_out_of_time() -> None:
        ids.append(run_id())
        future = ignores.submit(tmp_path)
        begun(tmp_path, ignores)
        future.wait()

    with pytest.raises(TimeoutError):
        runs_out_of_time()
    (pid,) = begun(tmp_path, ignores)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    (run,) = task_runs(ids[0], 1)
    assert run.state_name == "Cancelled"


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
    process = subprocess.Popen([sys.executable, script, tmp_path], start_new_session=True)
    try:
        (pid,) = begun(tmp_path, sleeps)
        process.send_signal(signal.SIGTERM)
        process.wait(15)
    finally:
        if process.poll() is None:
            process.kill()
    gone = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
    assert not gone[1]
