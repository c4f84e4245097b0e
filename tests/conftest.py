"""Offers the shared fixtures to every test, and puts the long files first."""

import functools
import importlib.metadata
import os
import zlib
from typing import Any

import prefect.workers.base
import pytest
from xdist.scheduler import LoadFileScheduling

from tests import shared
from tests.fixtures import (
    client,
    forks,
    here,
    kubernetes,
    kubernetes_client,
    pool,
    prefect_api,
    prefect_settings,
    ray,
    ray_cluster,
    shared_prefect_api,
    stage,
)

__all__ = [
    "client",
    "forks",
    "here",
    "kubernetes",
    "kubernetes_client",
    "pool",
    "prefect_api",
    "prefect_settings",
    "ray",
    "ray_cluster",
    "shared_prefect_api",
    "stage",
]

# Without it each process that tests start compiles all that it imports, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@functools.cache
def _integrations() -> tuple[importlib.metadata.Distribution, ...]:
    found = importlib.metadata.distributions()
    return tuple(dist for dist in found if dist.name.startswith("prefect"))


# Each worker that starts asks each installed package whether it is an integration of Prefect, for
# a tenth of a second (3.8.8).
prefect.workers.base.distributions = _integrations

# What is handed out first, the longest before all: each takes 40 s or more. At the end one process
# would wait for the other's last long file.
_AS_THREADS = "tests/task_runner/test_as_threads.py"
_TASK_RUNNER = "tests/task_runner/"
_FIRST = (
    _AS_THREADS,
    _TASK_RUNNER,
    "tests/integration/test_recovery.py",
    "tests/resilience/",
    "tests/integration/test_faults_watching.py",
    "tests/fundamentals/",
    "tests/integration/test_worker_ends.py",
    "tests/integration/test_warm_driver.py",
    "tests/integration/kuberay/test_kuberay_troubles.py",
    "tests/integration/test_faults_submitting.py",
    "tests/integration/test_doctor_bad_input.py",
    "tests/integration/kuberay/test_kuberay_worker_dies.py",
    "tests/integration/test_driver_claims.py",
    "tests/integration/test_adhoc_sending.py",
)
# Then all others, mixed: some compute and some wait. These take seconds, and are not among the
# last fifth.
_LONG = (
    "tests/integration/",
    "tests/contract/",
    "tests/unit/clusters/test_poller.py",
)
_LONG_UNTIL = 0.8


class _FilesOrSuite(LoadFileScheduling):
    """Hands out whole files, and the task runner's as one: they share a server and a Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        is_shared = file.startswith(_TASK_RUNNER) and file != _AS_THREADS
        return _TASK_RUNNER if is_shared else file


def pytest_configure(config: pytest.Config) -> None:
    """Prepare what all processes of this run share."""
    shared.begin(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what all processes of this run share."""
    shared.end(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Replace the scheduler of `--dist loadfile`."""
    return _FilesOrSuite(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return twice as many processes as there are CPUs: half of the time they wait."""
    return 2 * (os.cpu_count() or 1)


def _place(item: pytest.Item) -> tuple[int, float]:
    file = item.nodeid.partition("::")[0]
    for place, start in enumerate(_FIRST):
        if file.startswith(start):
            return place, 0
    mixed = zlib.crc32(file.encode()) / 2**32
    return len(_FIRST), mixed * (_LONG_UNTIL if file.startswith(_LONG) else 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server, and order the files that `--dist loadfile` hands out in turn."""
    for item in items:
        if "shared_prefect_api" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)
    items.sort(key=_place)
