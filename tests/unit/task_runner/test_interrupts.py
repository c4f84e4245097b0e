"""Interrupts of a task's process, in a process of their own: they take SIGINT over."""

import subprocess
import sys

import pytest

PRELUDE = """
import _thread, threading, time
from prefect_ray_worker.task_runner.interrupts import Interrupts

def cancel(seconds):
    threading.Timer(seconds, _thread.interrupt_main).start()

def run(seconds, load=0.0):
    Interrupts.begin()
    try:
        time.sleep(load)
        Interrupts.arm()
        time.sleep(seconds)
        return "done"
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        Interrupts.disarm()

Interrupts.install()
"""


def printed(script: str) -> str:
    """Run a script after the prelude; return what it prints."""
    command = [sys.executable, "-c", PRELUDE + script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_an_interrupt_ends_the_present_task_and_none_after_it() -> None:
    script = "cancel(0.1); print(run(20), *(run(0.2) for _ in range(5)))"
    assert printed(script).split() == ["interrupted", *["done"] * 5]


def test_each_of_several_cancelled_tasks_is_interrupted() -> None:
    script = """
for _ in range(5):
    cancel(0.1)
    print(run(20), run(0.1))
"""
    assert printed(script).split() == ["interrupted", "done"] * 5


def test_an_interrupt_while_a_task_is_loaded_is_not_lost() -> None:
    assert printed("cancel(0.1); print(run(20, load=0.5), run(0.2))") == "interrupted done\n"


@pytest.mark.parametrize("between", ["pass", "time.sleep(0.2)"], ids=["at once", "later"])
def test_an_interrupt_that_comes_too_late_interrupts_nothing(between: str) -> None:
    # Ray takes a task for running until it has stored the result.
    script = f"run(0); _thread.interrupt_main(); {between}; print(run(0.3))"
    assert printed(script) == "done\n"


@pytest.mark.parametrize(("late", "next_runs"), [(0.1, True), (1.5, False)])
def test_a_task_that_ends_late_awaits_the_kill_that_may_be_on_its_way(
    late: float, next_runs: bool
) -> None:
    # It hit the next task of that process, which may be another flow's.
    script = f"""
import os
from prefect_ray_worker.task_runner import interrupts
interrupts._SAFE_SECONDS, interrupts._KILLED_SECONDS = 1.0, 20.0

def ends_late():
    try:
        time.sleep(20)
    except KeyboardInterrupt:
        time.sleep({late})

Interrupts.begin()
Interrupts.arm()
cancel(0.1)
threading.Timer(2.5, os._exit, [0]).start()
try:
    ends_late()
finally:
    Interrupts.disarm()
print("next", flush=True)
"""
    assert printed(script) == ("next\n" if next_runs else "")


def test_an_interrupt_of_a_forked_process_is_its_own() -> None:
    """Its task was cancelled instead: both had the pipe in which Python notes signals."""
    script = """
import os, signal
Interrupts.begin()
Interrupts.arm()
is_ready, tell = os.pipe()
child = os.fork()
try:
    if not child:
        os.write(tell, b".")
        time.sleep(20)
        os._exit(1)
    os.read(is_ready, 1)
    os.kill(child, signal.SIGINT)
    time.sleep(0.3)
    print("goes on")
except KeyboardInterrupt:
    if not child:
        os._exit(7)
    print("interrupted")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert printed(script) == "goes on\n7\n"
