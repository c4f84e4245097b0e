"""`MemoryWatch`: did the kernel kill a process because memory was full? Standard library only.

Such a process dies of SIGKILL, like one that an administrator kills. Only counters of the kernel
(Linux 4.13) distinguish the two: one per control group (`memory.events` of version 2,
`memory.oom_control` of version 1), and one for the machine (`/proc/vmstat`), which also counts the
kills of others. So both are read regularly, and only a change within the last seconds counts.
"""

import resource
import sys
import time
from collections import deque
from pathlib import Path

from prefect_ray_worker.shared.memory_kills import MemoryKills

_EVERY_SECONDS = 0.5
# The kernel counts first and kills then, and a large process dies slowly.
_WINDOW_SECONDS = 10.0


class MemoryWatch:
    """Remembers the counters of the last seconds.

    Args:
        root: Where `/proc` and `/sys` are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._container = _counter_of_control_group(root)
        self._machine = root / "proc/vmstat"
        # When, and the counters of the group and the machine.
        self._seen: deque[tuple[float, int | None, int | None]] = deque(
            maxlen=int(_WINDOW_SECONDS / _EVERY_SECONDS)
        )
        self.look()

    def look(self) -> None:
        """Read the counters, unless they were read just now."""
        now = time.monotonic()
        if not self._seen or now - self._seen[-1][0] >= _EVERY_SECONDS:
            self._seen.append((now, _oom_kills(self._container), _oom_kills(self._machine)))

    def kills(self) -> MemoryKills:
        """Return what the counters show of the last seconds."""
        _, container, machine = self._seen[0]
        if _grew(container, _oom_kills(self._container)):
            return MemoryKills.IN_CONTAINER
        now = _oom_kills(self._machine)
        if _grew(machine, now):
            return MemoryKills.ON_MACHINE
        # The group's counter alone proves nothing: it omits kills because the machine was full.
        return MemoryKills.UNKNOWN if now is None else MemoryKills.NONE


def peak_of_children() -> int:
    """Return the peak memory of the largest ended child process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _grew(before: int | None, now: int | None) -> bool:
    return before is not None and now is not None and now > before


def _counter_of_control_group(root: Path) -> Path | None:
    """Return the file with the counter of this process's own group.

    Inside a container the path is that of the host, but the group's files are at the root.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    mount = root / "sys/fs/cgroup"
    for group in groups:
        _, _, rest = group.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "memory":
            places = [(mount / "memory", "memory.oom_control")]
        elif controllers == "":
            places = [(mount, "memory.events"), (mount / "unified", "memory.events")]
        else:
            continue
        for top, name in places:
            for folder in (top / path.lstrip("/"), top):
                if _oom_kills(folder / name) is not None:
                    return folder / name
    return None


def _oom_kills(file: Path | None) -> int | None:
    try:
        lines = file.read_text().splitlines() if file is not None else []
    except OSError:
        return None
    for line in lines:
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return None
