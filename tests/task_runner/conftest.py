"""A real Prefect server and a real Ray, joined once: processes of tasks are warm after a while."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_ray_worker import RayTaskRunner
from tests.integration.harness import settings_of
from tests.prefect_server import PrefectServer, prefect_server
from tests.real_ray import TERMS, RealRay, real_ray


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    home = tmp_path_factory.mktemp("prefect-server")
    # The tests of assets read events.
    extra = {"PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "true"}
    with prefect_server(home, extra) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def prefect_settings(
    prefect_api: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    home = tmp_path_factory.mktemp("prefect-home")
    with settings_of(prefect_api.api_url, home, PREFECT_LOGGING_TO_API_BATCH_INTERVAL="0.2"):
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[RealRay]:
    """A Ray with four CPUs, two GPUs that are none, two of a resource `seat`, and a label."""
    with real_ray(num_cpus=4, num_gpus=2, resources='{"seat": 2}', labels="zone=a") as ray:
        yield ray


@pytest.fixture
def joined(cluster: RealRay, session_connection: None) -> RealRay:
    return cluster


@pytest.fixture(scope="session")
def session_connection(cluster: RealRay, prefect_settings: None) -> Iterator[None]:
    os.environ.update(TERMS)  # Ray reads some of them when it is imported
    import ray

    ray.init(cluster.gcs_address, namespace="prefect", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def runner(joined: RealRay) -> RayTaskRunner:
    """A runner that uses the session's connection."""
    return RayTaskRunner()


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """A folder in which tasks leave traces."""
    return tmp_path
