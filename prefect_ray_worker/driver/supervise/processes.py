"""Ties the processes of a run together: none outlives its parent. Standard library only.

On Linux the kernel does most of it. On other systems a process that holds the lifeline, a pipe from
its supervisor, ends itself when the pipe closes.
"""

import ctypes
import os
import select
import signal
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

LIFELINE = "PREFECT_RAY_LIFELINE_FD"
"""Names the pipe that closes when the supervisor dies, in the environment of what it starts."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 20
_ANSWER_SECONDS = 2.0


def notice_death_of_parent() -> None:
    """Get a SIGCHLD when our parent dies. Call it again after a fork, which does not inherit it.

    Polling would be too slow: Ray ends the process group within a second of its JobSupervisor's
    death.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCHLD)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies. A fork does not inherit it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def have_orphans_adopted() -> None:
    """Let the supervisor and the guard adopt what this process leaves behind from now on.

    Waits for the supervisor's answer, which comes through the lifeline.
    """
    lifeline = os.environ.get(LIFELINE)
    if lifeline is None:
        return
    os.kill(os.getppid(), signal.SIGIO)
    if select.select([int(lifeline)], [], [], _ANSWER_SECONDS)[0]:
        os.read(int(lifeline), 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies. Call it in a child before exec."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def hold_lifeline() -> None:
    """End this process when its supervisor dies, where `die_with_parent` came too late or cannot.

    Watches the supervisor's pipe in a background thread; does nothing without one.
    """
    number = os.environ.pop(LIFELINE, None)
    if number is not None:
        threading.Thread(
            target=_watch, args=(int(number),), name="driver-lifeline", daemon=True
        ).start()


def _watch(pipe: int) -> None:
    os.set_inheritable(pipe, False)
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def parent_of(process: int) -> tuple[int, str]:
    """Return the parent of a process and the parent's name, as the kernel knows them.

    Raises:
        OSError: One of the two has gone, or this is no Linux.
    """
    parent = int(stat_of(process)[1])
    return parent, Path(f"/proc/{parent}/comm").read_text().strip()


def stat_of(process: int | str) -> list[str]:
    """Return the fields of `/proc/<process>/stat` from the third on, the state.

    Raises:
        OSError: The process has gone, or this is no Linux.
    """
    # The name stands in brackets and can hold any character; the last `)` ends it.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def kill_descendants(*, spare: Collection[int] = (), heir: int | None = None) -> None:
    """Kill every descendant, repeatedly until none is left: they can fork meanwhile.

    Args:
        spare: Descendants that live on, with all of theirs.
        heir: One that does the same when this process dies, and so is killed when it is the last:
            a kill of both on the way would leave some that nobody finds.
    """
    for _ in range(_ROUNDS):
        pids = _descendants(os.getpid(), spare)
        if not pids:
            return
        for pid in [pid for pid in pids if pid != heir] or pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap()


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(root: int, spare: Collection[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    ended: set[int] = set()
    proc = Path("/proc")
    for entry in proc.iterdir() if proc.is_dir() else ():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = stat_of(entry.name)[:2]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(int(entry.name))
        if state == "Z":
            ended.add(int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = [pid for pid in children.get(waiting.pop(), []) if pid not in spare]
        found += below
        waiting += below
    # A zombie whose other threads still run has children, so its descendants count as well.
    return [pid for pid in found if pid not in ended]


def _prctl(option: int, value: int) -> None:
    # macOS has no prctl; the lifeline does this work there.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
