"""Explains how a process of a run died, from its exit code and the kernel's counters."""

import signal

from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.exits import describe_exit
from prefect_ray_worker.shared.memory_kills import MemoryKills

_GIB = 1024**3
_CRASHES = frozenset(f"signal SIG{name}" for name in ("SEGV", "BUS", "ILL", "ABRT", "FPE"))
_OUT_OF_MEMORY = {
    MemoryKills.IN_CONTAINER: (
        "the kernel killed a process of its container for memory at that time"
    ),
    MemoryKills.ON_MACHINE: (
        "the kernel killed a process of the machine for memory at that time, almost certainly this "
        "one"
    ),
}
_NOT_PROVEN = {
    MemoryKills.NONE: "the kernel counted no out-of-memory kill on the node at that time",
    MemoryKills.UNKNOWN: (
        "most often the cause is memory, but nothing that is readable on the node proves it"
    ),
}


def of_exit(
    code: int,
    kills: MemoryKills = MemoryKills.UNKNOWN,
    *,
    peak: int | None = None,
    process: str = "The process that ran the flow",
) -> Diagnosis:
    """Return what an exit code means.

    Args:
        code: Of the process; negative, or 128 and more, for a signal.
        kills: What the kernel counted around the death.
        peak: The most memory that a process of the run has used, in bytes.
        process: Which process, for the sentence.
    """
    words = describe_exit(code)
    if not words.startswith("signal "):
        return diagnosed(Category.DRIVER_EXITED, f"{process} ended with {words}.")
    if words in _CRASHES:
        return diagnosed(
            Category.KILLED_BY_SIGNAL,
            f"{process} died of {words}: native code has crashed.",
            advice="Look at the job's log, and at the versions of packages with compiled parts.",
        )
    if words != f"signal {signal.SIGKILL.name}":
        return diagnosed(Category.KILLED_BY_SIGNAL, f"{process} died of {words}.")
    used = f" It or one of its child processes had used {_amount(peak)}." if peak else ""
    if kills in _OUT_OF_MEMORY:
        cause = f"{process} died of {words}: {_OUT_OF_MEMORY[kills]}.{used}"
        return diagnosed(Category.OUT_OF_MEMORY, cause)
    return diagnosed(
        Category.KILLED_BY_SIGNAL,
        f"{process} died of {words}: {_NOT_PROVEN[kills]}.{used}",
        advice=f"{Category.KILLED_BY_SIGNAL.advice} If it was memory: "
        f"{_lower(Category.OUT_OF_MEMORY.advice)}",
    )


def _amount(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / 1024**2:.0f} MiB"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
