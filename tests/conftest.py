"""Offers the shared fixtures to every test, and puts the long files first."""

import os

import pytest

from tests.fixtures import (
    client,
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

# Files that start servers and wait for them. The many short ones fill the gaps at the end, where
# otherwise one process would wait for the other's last long file.
_LONG = ("tests/integration/", "tests/fundamentals/")
_LONGEST = "tests/task_runner/"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server, and order the files that `--dist loadfile` hands out in turn."""
    for item in items:
        if "shared_prefect_api" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)
    items.sort(
        key=lambda item: (not item.nodeid.startswith(_LONGEST), not item.nodeid.startswith(_LONG))
    )
