"""Finds the processes that belong to the local Ray, and ends them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from prefect_ray_worker.errors import LocalClusterError

MARKER = "PRW_LOCAL_CLUSTER"
"""Environment variable that names the cluster; every process of a local Ray inherits it."""

_TERMINATE_SECONDS = 10.0
_KILL_SECONDS = 3.0
_KILL_ROUNDS = 3
_POLL_SECONDS = 0.05
_SAME_BIRTH_SECONDS = 0.05

# Keeps each `Popen`. Dropping one whose process runs causes a warning, and nothing would reap it.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class ProcessIdentity:
    """Identifies a process by pid and start time, because the system can reuse a pid.

    Attributes:
        pid: The process id.
        birth: The start time, in seconds. On Linux since boot, because psutil's time since the
            epoch shifts with the system clock; elsewhere since the epoch.
    """

    pid: int
    birth: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Identify a running process.

        Raises:
            psutil.NoSuchProcess: No process has this pid.
        """
        return cls(pid, _birth(psutil.Process(pid)))

    def process(self) -> psutil.Process | None:
        """Return the process, or None if it has ended; a zombie counts as ended."""
        _reap()
        try:
            process = psutil.Process(self.pid)
            same = abs(_birth(process) - self.birth) < _SAME_BIRTH_SECONDS
            return process if same and _is_alive(process) else None
        except psutil.Error:
            return None

    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        return self.process() is not None


def adopt(child: subprocess.Popen[bytes]) -> None:
    """Keep a child process that outlives its caller, and reap it after it ends."""
    _children.append(child)


def stop_all(leader: ProcessIdentity | None, marker: str) -> None:
    """End every process of a local Ray. Blocks for usually 3 s, at most about 20 s.

    Sends SIGTERM to the leader (`ray start --block`), which ends its daemons. Then sends SIGKILL to
    every process that is left when the leader has exited, or after 10 s.

    Args:
        leader: The `ray start` process, or None if it is unknown.
        marker: The value of `PRW_LOCAL_CLUSTER` in the cluster's environment.

    Raises:
        LocalClusterError: A process survives SIGKILL.
    """
    family = _family(leader, marker)
    if leader is not None and (process := leader.process()) is not None:
        process.terminate()
        _wait([process], _TERMINATE_SECONDS)
    left: list[psutil.Process] = []
    for _ in range(_KILL_ROUNDS):
        # List the processes again in each round: one can fork while its parent is being killed.
        left = [p for p in {*family, *_family(leader, marker)} if _is_alive(p)]
        if not left:
            return
        for process in left:
            _kill(process)
        left = _wait(left, _KILL_SECONDS)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise LocalClusterError(
            f"Processes of the local Ray survived SIGKILL (pid {pids}). They hang in the "
            "kernel, for example on a dead network file system: look at them with `ps`."
        )


def _family(leader: ProcessIdentity | None, marker: str) -> set[psutil.Process]:
    # Combine descendants, marker and session, because each alone misses some processes: a child is
    # no descendant once its parent has died, Ray's workers overwrite their environment with their
    # title, and drivers leave the session.
    found: set[psutil.Process] = set()
    session: int | None = None
    if leader is not None:
        process = leader.process()
        if process is not None:
            found.add(process)
            found.update(_descendants(process))
        if process is not None or not psutil.pid_exists(leader.pid):
            session = leader.pid
    for process in psutil.process_iter():
        if _marker(process) == marker or (session is not None and _is_ray(process, session)):
            found.add(process)
    return found - _self_and_ancestors()


def _self_and_ancestors() -> set[psutil.Process]:
    # A worker that runs inside a job of this cluster must not end itself.
    me = psutil.Process()
    try:
        return {me, *me.parents()}
    except psutil.Error:
        return {me}


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _is_ray(process: psutil.Process, session: int) -> bool:
    # The session id alone is not enough: after a reboot, another program can have it.
    try:
        return os.getsid(process.pid) == session and "ray" in " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return False


def _marker(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARKER)
    except (psutil.Error, OSError):
        return None


def _birth(process: psutil.Process) -> float:
    if sys.platform != "linux":
        return process.create_time()
    try:
        line = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise psutil.NoSuchProcess(process.pid) from exc
    # The name, in parentheses, can itself contain spaces and parentheses (proc(5)).
    fields = line.rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


def _wait(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    alive = [process for process in processes if _is_alive(process)]
    while alive and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        _reap()
        alive = [process for process in alive if _is_alive(process)]
    return alive


def _reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]
