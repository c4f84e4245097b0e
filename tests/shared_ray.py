"""One Ray for all pytest processes of a run: each costs a core's twentieth while it does nothing.

The process that wants it first starts it. pytest's controller, which outlives the others, ends it.
"""

import fcntl
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.real_ray import RealRay, end_ray, start_ray

NODES_PASSWORD = "admin:correct-horse-battery"
"""What its nodes have in `TEAM_PASSWORD`, for tests of secrets."""

# The processes that pytest-xdist starts inherit it.
_FOLDER_VARIABLE = "PRWT_SHARED"
_ENV = {
    "TEAM_PASSWORD": NODES_PASSWORD,
    # Once, not three times, for an environment that cannot be made.
    "RUNTIME_ENV_RETRY_TIMES": "1",
}


def shared_ray() -> RealRay:
    """Return the run's Ray, and start it if nobody has yet."""
    started = _started()
    with started.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not started.exists():
            _, ray = start_ray(2, _ENV, parts="monitor logs")
            started.write_bytes(pickle.dumps(ray))
        return pickle.loads(started.read_bytes())


def begin(config: pytest.Config) -> None:
    """Prepare a run; call it in `pytest_configure`."""
    if not hasattr(config, "workerinput"):
        os.environ[_FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="prwt-shared-")


def end(config: pytest.Config) -> None:
    """End what the run shares; call it in `pytest_unconfigure`."""
    if not hasattr(config, "workerinput"):
        if _started().exists():
            end_ray(pickle.loads(_started().read_bytes()).temp_dir)
        shutil.rmtree(os.environ.pop(_FOLDER_VARIABLE), ignore_errors=True)


def _started() -> Path:
    return Path(os.environ[_FOLDER_VARIABLE]) / "ray"
