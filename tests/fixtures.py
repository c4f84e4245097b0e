"""The fixtures that several suites share, each in this one place; `conftest.py` offers them to all.

A suite overrides one of these only where it needs another kind of server or pool.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from tests.fake_kubernetes import CRD, MISSING_CRD, FakeKubernetes
from tests.fake_ray import FakeRay
from tests.forks import Forks
from tests.integration.harness import (
    QUERY_SECONDS,
    Pool,
    new_pool,
    set_timing,
    settings_of,
)
from tests.integration.stage import STAGE_INTERVAL, Stage, new_stage
from tests.prefect_server import PrefectServer
from tests.real_ray import RealRay
from tests.shared import shared_prefect_server, shared_ray


@pytest.fixture(scope="session")
def ray_cluster() -> RealRay:
    """The real Ray head of all processes of the run; give each job an id of its own."""
    return shared_ray()


@pytest.fixture
async def ray() -> AsyncIterator[FakeRay]:
    """A fake Ray: the test decides what its jobs do, and what it answers."""
    async with FakeRay() as fake:
        yield fake


@pytest.fixture
async def client(ray: FakeRay) -> AsyncIterator[JobsClient]:
    """Our client of the fake Ray."""
    async with JobsClient(Connection(ray.address)) as opened:
        yield opened


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs code in interpreters of its own, forks of one that has Prefect imported."""
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="session")
def shared_prefect_api() -> Iterator[PrefectServer]:
    """A real Prefect server that this process shares, without a UI and without stored events."""
    with shared_prefect_server() as server:
        yield server


@pytest.fixture(scope="session")
def prefect_api(shared_prefect_api: PrefectServer) -> PrefectServer:
    """The server of a suite's tests: the shared one, unless the suite needs another kind."""
    return shared_prefect_api


@pytest.fixture
def prefect_settings(prefect_api: PrefectServer, tmp_path: Path) -> Iterator[None]:
    """This process's settings point at the session's Prefect server."""
    with settings_of(
        prefect_api.api_url,
        tmp_path / "prefect-home",
        PREFECT_WORKER_QUERY_SECONDS=QUERY_SECONDS,
        PREFECT_LOGGING_TO_API_BATCH_INTERVAL="0.2",
        # Else each client asks first whether this server wants a token, which it does not.
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED="false",
    ):
        yield


@pytest.fixture
async def pool(ray_cluster: RealRay, prefect_settings: None) -> AsyncIterator[Pool]:
    """A work pool whose deployments go to the real Ray."""
    async with new_pool({"address": ray_cluster.address}) as pool:
        yield pool


@pytest.fixture
async def here(prefect_settings: None) -> AsyncIterator[Pool]:
    """A pool without a cluster, for drivers that tests start on this machine."""
    async with new_pool({}) as pool:
        yield pool


@pytest.fixture
async def stage(prefect_settings: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A fake Ray and a quick worker's settings; the worker is `stage.pool.working()`."""
    # Not quicker: a Prefect server on SQLite turns away one of two that write at once, with a
    # 503 that costs its client seconds.
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS", str(STAGE_INTERVAL))
    set_timing(monkeypatch, report_grace=1.0)
    async with new_stage() as staged:
        yield staged


@pytest.fixture
async def kubernetes() -> AsyncIterator[FakeKubernetes]:
    """A fake Kubernetes with KubeRay: the test decides what goes wrong with which cluster."""
    if not CRD.exists():
        pytest.skip(MISSING_CRD)
    async with FakeKubernetes() as fake:
        yield fake


@pytest.fixture
async def kubernetes_client(kubernetes: FakeKubernetes) -> AsyncIterator[KubernetesClient]:
    """Our client of the fake Kubernetes, with a worker's rights."""
    config = Kubeconfig.of_block(kubernetes.kubeconfig())
    async with KubernetesClient(config) as opened:
        yield opened
