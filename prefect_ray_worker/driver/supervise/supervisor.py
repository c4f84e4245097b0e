"""The first processes of a Ray Job: they start the engine and report how it ended.

Standard library only: they exist in every run, and their start delays the run's.

1. Nothing of the run outlives its job. Ray and the kernel's out-of-memory killer may kill any
   process here, and the children of a dead process cannot be found any more. So there are two:
   the guard, which Ray knows, and its fork, the supervisor. Each ends everything when the other
   dies; the guard does so as well when Ray's JobSupervisor dies.
2. An engine that died silently is reported by a process that can import Prefect.
3. The exit code is the engine's own, signals included.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from prefect_ray_worker.driver.supervise import processes as descendants
from prefect_ray_worker.driver.supervise.memory import MemoryWatch, peak_of_children
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.memory_kills import MemoryKills

_LOOK_SECONDS = 0.5
_REPORT_SECONDS = 60
_HANDLED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})


def main(arguments: list[str]) -> int:
    """Run one attempt at a flow run; end as its engine did, by exit code or by signal.

    Args:
        arguments: The flow run's id and the attempt's.
    """
    if len(arguments) != 2:
        print("Usage: python -m prefect_ray_worker.driver <flow run id> <attempt>", file=sys.stderr)
        return DriverExit.BAD_CALL
    # Blocked, so that signals are read in one place.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    job, guard, group = os.getppid(), os.getpid(), os.getpgrp()
    descendants.watch_over_family()
    supervisor = os.fork()
    if supervisor == 0:
        # Ray kills a job's process group at once: one of the two has to survive and clean up.
        os.setpgid(0, 0)
        descendants.watch_over_family()
        return _end_like(_supervise(arguments, guard, group))
    code = _wait(supervisor, job)
    descendants.kill_descendants()
    return _end_like(code)


def _supervise(arguments: list[str], guard: int, group: int) -> int:
    memory = MemoryWatch()
    engine = _start("engine", arguments, group)
    code = engine.returncode = _wait(engine.pid, guard, meanwhile=memory.look)
    if code == 0 or code in set(DriverExit):
        descendants.kill_descendants()
        return code
    kills = memory.kills()
    descendants.kill_descendants()
    peak = peak_of_children()
    evidence = [str(code), kills.value, str(peak)]
    reporter = _start("report", [*arguments, *evidence], group)
    reporter.returncode = _wait(reporter.pid, guard, within=_REPORT_SECONDS)
    _tell_worker(arguments[1], code, kills, peak)
    return code


def _tell_worker(attempt: str, code: int, kills: MemoryKills, peak: int) -> None:
    # Imported here, because these modules would slow down the start of every run.
    from prefect_ray_worker.driver.last_words import tell_worker
    from prefect_ray_worker.shared.deaths import of_exit

    tell_worker(of_exit(code, kills, peak=peak), attempt)


def _start(module: str, arguments: list[str], group: int) -> "subprocess.Popen[bytes]":
    lifeline, held_open = os.pipe()
    os.set_inheritable(held_open, False)
    process = subprocess.Popen(
        [sys.executable, "-m", f"prefect_ray_worker.driver.{module}", *arguments],
        pass_fds=(lifeline,),
        env={**os.environ, descendants.LIFELINE: str(lifeline)},
        # Safe here: this process has one thread.
        preexec_fn=partial(_in_child, os.getpid(), group),
    )
    os.close(lifeline)
    return process


def _in_child(parent: int, group: int) -> None:
    os.setpgid(0, group)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    descendants.die_with_parent(parent)


def _wait(
    child: int,
    parent: int,
    *,
    within: float | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Wait for a child, forward SIGTERM to it, and end everything if our parent is gone.

    Returns:
        Its exit code, negative for a signal.
    """
    looks = 0
    while True:
        meanwhile()
        code = _reap(child)
        if code is not None:
            return code
        if os.getppid() != parent:
            _end_everything()
        news = _next_signal()
        if news is None:
            looks += 1
        elif news.si_signo == signal.SIGTERM:
            # Ray signals every process that it finds, perhaps before the engine exists. An engine
            # that gets the signal twice ignores the second.
            os.kill(child, signal.SIGTERM)
        if within is not None and looks * _LOOK_SECONDS > within:
            os.kill(child, signal.SIGKILL)


def _reap(child: int) -> int | None:
    """Reap ended children, adopted ones too; return the exit code of one of them, or None."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None


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
