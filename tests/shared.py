"""What all pytest processes of a run share: each Ray, each Prefect server costs CPU while idle.

The process that wants one first starts it. pytest's controller, which outlives the others, ends it.
"""

import fcntl
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from tests.prefect_server import PrefectServer, send_what_is_left, start_server
from tests.real_ray import RealRay, start_ray

NODES_PASSWORD = "admin:correct-horse-battery"
"""What the nodes of the shared Ray have in `TEAM_PASSWORD`, for tests of secrets."""

# The processes that pytest-xdist starts inherit it.
_FOLDER_VARIABLE = "PRWT_SHARED"
_RAY_ENV = {
    "TEAM_PASSWORD": NODES_PASSWORD,
    # Once, not three times, for an environment that cannot be made.
    "RUNTIME_ENV_RETRY_TIMES": "1",
}
_KEEPS_EVENTS = {
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "true",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.3",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "true",
}
# One has not enough of a CPU for the workers of five processes.
_SERVERS = 2


class _Shared(Protocol):
    def end(self) -> None: ...


T = TypeVar("T", bound=_Shared)


def shared_ray() -> RealRay:
    """Return the run's Ray."""
    return _shared("ray", lambda: start_ray(2, _RAY_ENV, parts="monitor logs"))


@contextmanager
def shared_prefect_server(*, with_events: bool = False) -> Iterator[PrefectServer]:
    """Have one of the run's Prefect servers for the length of a `with` block.

    Args:
        with_events: Have the one that keeps events and runs automations.
    """
    process = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    name = "prefect-events" if with_events else f"prefect-{int(process) % _SERVERS}"
    extra = _KEEPS_EVENTS if with_events else None
    send_what_is_left()  # Prefect's sender holds on to the server that it began with
    yield _shared(name, lambda: start_server(_folder() / name, extra))
    send_what_is_left()


def begin(config: pytest.Config) -> None:
    """Prepare a run; call it in `pytest_configure`."""
    if not hasattr(config, "workerinput"):
        os.environ[_FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="prwt-shared-")


def end(config: pytest.Config) -> None:
    """End what the run shares; call it in `pytest_unconfigure`."""
    if not hasattr(config, "workerinput"):
        started = [pickle.loads(path.read_bytes()) for path in _folder().glob("*.started")]
        with ThreadPoolExecutor() as threads:  # each takes seconds
            list(threads.map(lambda part: part.end(), started))
        shutil.rmtree(os.environ.pop(_FOLDER_VARIABLE), ignore_errors=True)


def _shared(name: str, start: Callable[[], tuple[subprocess.Popen[bytes], T]]) -> T:
    started = _folder() / f"{name}.started"
    with started.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not started.exists():
            process, handle = start()
            process.returncode = 0  # The controller waits for its end: no warning that it runs.
            started.write_bytes(pickle.dumps(handle))
        return pickle.loads(started.read_bytes())


def _folder() -> Path:
    return Path(os.environ[_FOLDER_VARIABLE])
