"""The first processes of a Ray Job: they start the engine and report how it ended.

Standard library only: they exist in every run, and their start delays the run's.

1. Nothing of the run outlives its job. Ray and the kernel's out-of-memory killer may kill any
   process here, and the children of a dead process cannot be found any more. So there are two:
   the guard, which Ray knows, and the supervisor. Each ends everything when the other dies; the
   guard does so as well when Ray's JobSupervisor dies, at about the time when Ray kills the guard
   with its process group. Both adopt orphans, but only once the engine has left its zygote behind:
   that forks other runs, so it must not be of this family.
   When Ray stops a job, it ends all descendants of the guard (`job_supervisor.py`, 2.60).
2. An engine that died silently is reported by a process that can import Prefect.
3. The exit code is the engine's own, signals included.

The supervisor is the guard's fork, and its engine a new interpreter; or a zygote of an earlier run
has forked both, which saves the imports.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from prefect_ray_worker.driver.supervise import processes as descendants
from prefect_ray_worker.driver.supervise.borrowed import borrow_supervisor
from prefect_ray_worker.driver.supervise.fingerprint import fingerprint_of_process
from prefect_ray_worker.driver.supervise.link import GuardLink, Word
from prefect_ray_worker.driver.supervise.memory import MemoryWatch, peak_of_children
from prefect_ray_worker.driver.supervise.rendezvous import Rendezvous
from prefect_ray_worker.shared.environment import WARM_SECONDS, ZYGOTE, variables_of_run
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.memory_kills import MemoryKills

HANDLED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGIO})
"""The signals that guard and supervisor block, so that they are read in one place."""

# Set by Ray in the entrypoint of a job (`job_supervisor.py`, 2.60).
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Ray expands a reference to a variable that the node does not have to an empty text. Prefect would
# take that for a key, and a wrong one.
_KEY = "PREFECT_API_KEY"
_MAY_BE_EMPTY = (_KEY, "PREFECT_API_AUTH_STRING", "PREFECT_CLIENT_CUSTOM_HEADERS")
# Ray stops a job with either (RAY_JOB_STOP_SIGNAL; `job_supervisor.py`, 2.60).
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT})
_LOOK_SECONDS = 0.5
_REPORT_SECONDS = 60


class AwaitedProcess(Protocol):
    """The process that a guard or a supervisor waits for."""

    def ended(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        ...

    def terminate(self) -> None:
        """Hand a SIGTERM on to it."""
        ...


def main(arguments: list[str]) -> int:
    """Run one attempt at a flow run; end as its engine did, by exit code or by signal.

    Args:
        arguments: The flow run's id and the attempt's.
    """
    if len(arguments) != 2:
        print("Usage: python -m prefect_ray_worker.driver <flow run id> <attempt>", file=sys.stderr)
        return DriverExit.BAD_CALL
    # Without an API, Prefect would start a server of its own on the node, which knows no run.
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    _correct_credentials()
    _tell_of_run(_variables_of_job(arguments[0]))
    job, guard, group = os.getppid(), os.getpid(), os.getpgrp()
    descendants.notice_death_of_parent()
    watched = _borrow(arguments)
    supervisor = None
    if ZYGOTE not in os.environ:
        descendants.adopt_orphans()
    if watched is None:
        supervisor = os.fork()
        if supervisor == 0:
            # Ray kills a job's process group at once: one of the two has to survive and clean up.
            os.setpgid(0, 0)
            descendants.notice_death_of_parent()
            return _end_like(_supervise(arguments, guard, group))
        watched = _Child(supervisor)
    code = _wait(watched, _lost(job), woken=descendants.adopt_orphans, heir=supervisor)
    descendants.kill_descendants()
    return _end_like(code)


def _correct_credentials() -> None:
    """Drop credentials that are blank, and the line end of a key that comes from a file."""
    for name in _MAY_BE_EMPTY:
        if name in os.environ and not os.environ[name].strip():
            del os.environ[name]
    # No header can hold it. A line end of PREFECT_API_AUTH_STRING may be in the server's as well.
    if _KEY in os.environ:
        os.environ[_KEY] = os.environ[_KEY].strip()


def _tell_of_run(variables: Mapping[str, str]) -> None:
    """Set variables, but for those that no variable can hold: a flow's name may have any letter."""
    for name, value in variables.items():
        with suppress(ValueError):  # a null, or none of the letters of the node's encoding
            os.environ[name] = value


def _variables_of_job(flow_run_id: str) -> dict[str, str]:
    """Return Prefect's variables for the run, but for those that its job's environment sets."""
    try:
        job: dict[str, Any] = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
        variables = variables_of_run(flow_run_id, job.get("metadata") or {})
        asked = (job.get("runtime_env") or {}).get("env_vars") or {}
    except (AttributeError, TypeError, ValueError):
        return variables_of_run(flow_run_id, {})
    return {name: value for name, value in variables.items() if name not in asked}


def _borrow(arguments: list[str]) -> AwaitedProcess | None:
    """Return a supervisor that a zygote has forked; otherwise name the one that may stay behind."""
    os.environ.pop(ZYGOTE, None)
    try:
        if float(os.environ.get(WARM_SECONDS, "0")) <= 0:
            return None
        raylet, name = descendants.parent_of(os.getppid())
        fingerprint = fingerprint_of_process(raylet) if name == "raylet" else None
        if fingerprint is None:
            return None
        supervisor = borrow_supervisor(Rendezvous(raylet), fingerprint, arguments)
    except (OSError, ValueError):
        return None
    os.environ[ZYGOTE] = f"{fingerprint} {raylet}"
    return supervisor


def _supervise(arguments: list[str], guard: int, group: int) -> int:
    engine, lifeline = _start("engine", arguments, group)

    def adopt() -> None:
        descendants.adopt_orphans()
        with suppress(OSError):
            if os.getppid() == guard:
                os.kill(guard, signal.SIGIO)
            os.write(lifeline, b"+")

    if ZYGOTE not in os.environ:
        descendants.adopt_orphans()
    engine.returncode = attend(engine.pid, arguments, _lost(guard), group, adopt)
    return engine.returncode


def attend(
    engine: int,
    arguments: Sequence[str],
    is_orphaned: Callable[[], bool],
    group: int,
    adopt: Callable[[], None] = descendants.adopt_orphans,
) -> int:
    """Wait for the engine, this process's child; have a silent death reported.

    Args:
        engine: Its process.
        arguments: The flow run's id and the attempt's.
        is_orphaned: Whether the guard has gone, so that all has to end.
        group: The process group of what is started; 0 for one of its own.
        adopt: Makes guard and supervisor adopt orphans, when the engine asks for it.

    Returns:
        The engine's exit code, negative for a signal.
    """
    memory = MemoryWatch()
    code = _wait(_Child(engine), is_orphaned, meanwhile=memory.look, woken=adopt)
    if code == 0 or code in set(DriverExit):
        descendants.kill_descendants()
        return code
    kills = memory.kills()
    descendants.kill_descendants()
    peak = peak_of_children()
    evidence = [str(code), kills.value, str(peak)]
    adopt()  # the engine may have died before it could ask, and the flow's hooks run now
    reporter, _ = _start("report", [*arguments, *evidence], group)
    child = _Child(reporter.pid)
    limit = child.kill_after(_REPORT_SECONDS)
    reporter.returncode = _wait(child, is_orphaned, meanwhile=limit)
    _tell_worker(arguments[1], code, kills, peak)
    return code


def _tell_worker(attempt: str, code: int, kills: MemoryKills, peak: int) -> None:
    # Imported here, because these modules would slow down the start of every run.
    from prefect_ray_worker.driver.last_words import tell_worker
    from prefect_ray_worker.shared.deaths import of_exit

    tell_worker(of_exit(code, kills, peak=peak), attempt)


def _start(module: str, arguments: list[str], group: int) -> "tuple[subprocess.Popen[bytes], int]":
    """Start a process of the run; return it, and this side of its lifeline."""
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
    return process, held_open


def _in_child(parent: int, group: int) -> None:
    os.setpgid(0, group)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    descendants.die_with_parent(parent)


class _Child:
    def __init__(self, process: int) -> None:
        self._process = process

    def ended(self) -> int | None:
        """Return its exit code; reap every other child that has ended, adopted ones too."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == self._process:
                return os.waitstatus_to_exitcode(status)
            if pid == 0:
                return None

    def terminate(self) -> None:
        os.kill(self._process, signal.SIGTERM)

    def kill_after(self, seconds: float) -> Callable[[], None]:
        """Return what kills it once it has had its time; to be called while it runs."""
        end = time.monotonic() + seconds

        def look() -> None:
            if time.monotonic() > end:
                os.kill(self._process, signal.SIGKILL)

        return look


def _lost(parent: int) -> Callable[[], bool]:
    return lambda: os.getppid() != parent


def is_released(link: GuardLink) -> bool:
    """Return whether the guard of a borrowed supervisor, this process, has gone.

    A SIGTERM that the guard has got reaches this process as well, by its own hand.
    """
    for word, _ in link.words():
        if word == Word.TERMINATE:
            os.kill(os.getpid(), signal.SIGTERM)
    return link.is_closed


def _wait(
    watched: AwaitedProcess,
    is_orphaned: Callable[[], bool],
    *,
    meanwhile: Callable[[], None] = lambda: None,
    woken: Callable[[], None] = lambda: None,
    heir: int | None = None,
) -> int:
    """Wait for an end, hand stops on, and end everything if nobody waits for this process.

    Args:
        watched: What to wait for.
        is_orphaned: Whether nobody waits for this process.
        meanwhile: Called now and then.
        woken: Called after each SIGIO.
        heir: The process that ends everything when this one is killed, if it is a child.

    Returns:
        Its exit code, negative for a signal.
    """
    while True:
        meanwhile()
        code = watched.ended()
        if code is not None:
            return code
        if is_orphaned():
            descendants.kill_descendants(heir=heir)
            os._exit(1)
        news = _next_signal()
        if news is not None and news.si_signo in _STOPS:
            # Ray signals every process that it finds, perhaps before the engine exists. An engine
            # that gets the signal twice ignores the second.
            watched.terminate()
        elif news is not None and news.si_signo == signal.SIGIO:
            woken()


def _next_signal() -> "signal.struct_siginfo | None":
    if hasattr(signal, "sigtimedwait"):
        return signal.sigtimedwait(HANDLED, _LOOK_SECONDS)
    time.sleep(_LOOK_SECONDS)  # macOS
    return None


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
