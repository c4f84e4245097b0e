"""Finds and ends every process that descends from this one. Standard library, Linux."""

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 20


def watch_over_family() -> None:
    """Be woken (SIGCHLD) when our parent dies, and adopt descendants whose own parent dies.

    Both have to be asked for again after a fork. Ray ends the process group within a second of
    its JobSupervisor's death: whoever only looked now and then might come too late.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCHLD)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; meant for a child before exec."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def kill_descendants() -> None:
    """Kill every descendant, again and again until none is left: they may fork meanwhile."""
    for _ in range(_ROUNDS):
        pids = _descendants(os.getpid())
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap()


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    ended: set[int] = set()
    proc = Path("/proc")
    for entry in proc.iterdir() if proc.is_dir() else ():
        if not entry.name.isdigit():
            continue
        try:
            # The command in brackets may hold anything; what follows the last one may not.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(int(entry.name))
        if state == "Z":
            ended.add(int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    # Looked below, because a process of several threads has children until the last has ended.
    return [pid for pid in found if pid not in ended]


def _prctl(option: int, value: int) -> None:
    # Not on macOS; there the lifeline of `engine` does what the kernel does here.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
