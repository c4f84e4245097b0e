"""The first process of a Ray Job: starts the engine, and answers for how it ends.

The standard library only: this process exists in every run, and its start is the run's.

1. Nothing of the run outlives its job: when Ray's JobSupervisor dies, so does everything here;
   when this process dies, the kernel ends the engine.
2. An engine that dies without a word is reported, in a process that can import Prefect.
3. The exit code is the engine's own, signals included.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from prefect_ray_worker.driver import descendants
from prefect_ray_worker.driver.exits import DriverExit

LIFELINE = "PREFECT_RAY_LIFELINE_FD"
"""Names the pipe that closes when the supervisor dies, in the engine's environment."""

_LOOK_SECONDS = 0.5
_REPORT_SECONDS = 60
_HANDLED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})


def main(arguments: list[str]) -> int:
    """Run one attempt at a flow run; return, or die of, what its engine ended with.

    Args:
        arguments: The flow run's id and the attempt's.
    """
    if len(arguments) != 2:
        print("Usage: python -m prefect_ray_worker.driver <flow run id> <attempt>", file=sys.stderr)
        return DriverExit.BAD_CALL
    descendants.adopt_orphans()
    # Blocked, so that a signal is read in one place together with who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    parent = os.getppid()
    engine = _start("engine", arguments)
    code = _wait(engine, parent)
    if code != 0 and code not in set(DriverExit):
        reporter = _start("report", [*arguments, str(code)])
        _wait(reporter, parent, within=_REPORT_SECONDS)
    return _end_like(code)


def _start(module: str, arguments: list[str]) -> "subprocess.Popen[bytes]":
    lifeline, held_open = os.pipe()
    os.set_inheritable(held_open, False)
    process = subprocess.Popen(
        [sys.executable, "-m", f"prefect_ray_worker.driver.{module}", *arguments],
        pass_fds=(lifeline,),
        env={**os.environ, LIFELINE: str(lifeline)},
        # Safe here: this process has one thread.
        preexec_fn=partial(_in_child, os.getpid()),
    )
    os.close(lifeline)
    return process


def _in_child(parent: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    descendants.die_with_parent(parent)


def _wait(process: "subprocess.Popen[bytes]", parent: int, *, within: float | None = None) -> int:
    """Wait for a process, pass signals on to it, and end everything if our parent is gone."""
    looks = 0
    while True:
        code = process.poll()
        if code is not None:
            return code
        news = _next_signal()
        if os.getppid() != parent:
            _end_everything()
        if news is None:
            looks += 1
        elif news.si_signo != signal.SIGCHLD and news.si_pid != parent:
            # Ray signals each process of a job by itself: passing that on would make it two.
            process.send_signal(news.si_signo)
        if within is not None and looks * _LOOK_SECONDS > within:
            process.kill()


def _next_signal() -> "signal.struct_siginfo | None":
    if hasattr(signal, "sigtimedwait"):
        return signal.sigtimedwait(_HANDLED, _LOOK_SECONDS)
    time.sleep(_LOOK_SECONDS)  # macOS
    return None


def _end_everything() -> None:
    descendants.kill_descendants()
    os._exit(1)


def _end_like(code: int) -> int:
    """Return an exit code, or die of the signal that the engine died of, so that Ray shows it."""
    if code >= 0:
        return code
    number = -code
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        reset: Callable[[int, signal.Handlers], object] = signal.signal
        reset(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number
