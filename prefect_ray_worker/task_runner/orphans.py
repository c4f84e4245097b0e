"""Ends what a task has started, after the task's process has died of a signal.

Ray (2.60) ends the children of a process that exits, and the process group of one that is killed.
What a killed task had started in a session of its own would outlive the job. So each task process
puts its name into its environment, which its children inherit. A process with the name of a task
process of this job that is dead is an orphan. It is ended on its own node only, because process
ids mean nothing elsewhere.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.logging import get_logger

_log = get_logger("task_runner.ray")

_MARK = "PREFECT_RAY_WORKER_TASK_PROCESS"
_PROC = Path("/proc")
_SECONDS = 5.0
# An orphan may start another one while we look.
_ROUNDS = 3


def mark_children() -> None:
    """Have what this task process starts from now on bear its name."""
    with suppress(OSError):  # no /proc, on macOS
        os.environ[_MARK] = f"{_here()}:{os.getpid()}:{_started(os.getpid())}"


def end_orphans_here() -> int:
    """End the orphans of this job on this node; return how many there were."""
    ended: set[int] = set()
    with suppress(OSError):
        for _ in range(_ROUNDS):
            found = set(_orphans(f"{_MARK}={_here()}:".encode())) - ended
            if not found:
                break
            for pid in found:
                ended.add(pid)
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
    return len(ended)


class OrphanSweeper:
    """Ends the orphans of this job on all nodes, in the background, once tasks were lost."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._is_sweeping = False
        self._is_wanted = False
        self.has_swept = False

    def sweep(self) -> None:
        """Look on every node; if that is going on, once more after it."""
        with self._changing:
            self.has_swept = self._is_wanted = True
            if self._is_sweeping:
                return
            self._is_sweeping = True
        while True:
            with self._changing:
                if not self._is_wanted:
                    self._is_sweeping = False
                    return
                self._is_wanted = False
            _sweep_nodes()


def _sweep_nodes() -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():  # a call would start another one
        return
    try:
        function: Any = ray.remote(num_cpus=0, max_retries=0)(end_orphans_here)
        refs: list[Any] = [
            function.options(
                name="RayTaskRunner: end orphans",
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote()
            for node in ray.nodes()
            if node.get("Alive", node.get("alive"))
        ]
        deadline = time.monotonic() + _SECONDS
        ended = 0
        for ref in refs:
            with suppress(Exception):  # a node that has gone, or is slow
                here: Any = ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
                ended += here
    except Exception:
        _log.debug("Processes that lost tasks have started were not looked for", exc_info=True)
    else:
        if ended:
            _log.warning("Ended %s processes that tasks had started whose process has died", ended)


def _here() -> str:
    import ray

    context = ray.get_runtime_context()
    return f"{context.get_node_id()}:{context.get_job_id()}"


def _orphans(mark: bytes) -> Iterator[int]:
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, ValueError):  # it has ended, or is somebody else's
            variables = (entry / "environ").read_bytes().split(b"\0")
            name = next((v for v in variables if v.startswith(mark)), None)
            if name is not None and not _is_alive(*name.removeprefix(mark).decode().split(":")):
                yield int(entry.name)


def _is_alive(pid: str, started: str) -> bool:
    try:
        return _started(int(pid)) == started
    except OSError:
        return False


def _started(pid: int) -> str:
    """Return when a process has started, in ticks since the boot.

    Raises:
        OSError: It has ended.
    """
    # The command stands in brackets and can hold any character; the last `)` ends it.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return fields[19]
