"""`show_as`: what `ps` shows of a forked process, which would be the run that it was forked from.

Standard library only.
"""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prefect_ray_worker.driver.supervise.processes import stat_of

# Where the addresses of each begin in `/proc/<pid>/stat`, numbered from 1 (`proc_pid_stat(5)`).
_ARGUMENTS, _ENVIRONMENT = 48, 50
_FIRST = 3


def show_as(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Show a command and an environment as this process's own, as far as there is room.

    The kernel shows what stands where the process found both at its start (`/proc/<pid>/cmdline`
    and `environ`). Does nothing where it does not say where that is.

    Args:
        command: Program and arguments.
        environment: All variables of the process: none may point to the old ones any more. The
            first ones are shown if there is no room for all.
    """
    _overwrite("cmdline", _ARGUMENTS, command)
    _overwrite("environ", _ENVIRONMENT, (f"{k}={v}" for k, v in environment.items()))


def _overwrite(file: str, field: int, entries: Iterable[str]) -> None:
    try:
        present = Path("/proc/self", file).read_bytes()
        start, end = map(int, stat_of("self")[field - _FIRST : field - _FIRST + 2])
    except (OSError, ValueError):
        return
    size = end - start
    if start == 0 or size != len(present) or ctypes.string_at(start, size) != present:
        return
    shown = b""
    for entry in entries:
        encoded = entry.encode(errors="surrogateescape") + b"\0"
        if len(shown) + len(encoded) <= size:
            shown += encoded
    ctypes.memmove(start, shown.ljust(size, b"\0"), size)
