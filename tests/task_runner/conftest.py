"""A real Prefect server and a real Ray, joined once: processes of tasks are warm after a while."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_ray_worker import RayTaskRunner
from tests.integration.harness import settings_of
from tests.prefect_server import PrefectServer
from tests.real_ray import KEEPS_PROCESSES, TERMS, RealRay, real_ray


@pytest.fixture(scope="package", autouse=True)
def prefect_settings(
    prefect_api: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    home = tmp_path_factory.mktemp("prefect-home")
    with settings_of(prefect_api.api_url, home, PREFECT_LOGGING_TO_API_BATCH_INTERVAL="0.2"):
        yield


@pytest.fixture(scope="package")
def cluster() -> Iterator[RealRay]:
    """A Ray with four CPUs, two GPUs that are none, two of a resource `seat`, and a label."""
    more = {"num_gpus": 2, "resources": '{"seat": 2}', "labels": "zone=a"}
    with real_ray(num_cpus=4, env=KEEPS_PROCESSES, **more) as ray:
        yield ray


@pytest.fixture
def joined(cluster: RealRay, session_connection: None) -> RealRay:
    return cluster


@pytest.fixture(scope="package")
def session_connection(cluster: RealRay, prefect_settings: None) -> Iterator[None]:
    import ray
    from ray._private import ray_constants

    with pytest.MonkeyPatch.context() as patch:
        for name, value in TERMS.items():
            patch.setenv(name, value)
        # Ray 2.60 reads one of them when it is imported, which another suite may have done before.
        # With its default a driver replaces 127.0.0.1 by the machine's address, where this head
        # does not listen, and `ray.init` hangs.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
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
