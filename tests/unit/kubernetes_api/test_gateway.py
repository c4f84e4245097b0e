"""Ray's Jobs API through the API server's service proxy: whose answer is whose."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from prefect_ray_worker.errors import (
    AgentUnreachable,
    AmbiguousError,
    ClusterUnreachable,
    JobAlreadyExists,
    JobNotFound,
    NotAuthorized,
    ObjectMissing,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.fake_kubernetes import FakeKubernetes, Fault, Kind, a_manifest
from tests.fake_ray import FakeRay
from tests.waiting import wait_until

JOB = JobSubmitRequest(entrypoint="true", submission_id="a-job", runtime_env={}, metadata={})


@pytest.fixture
async def connection(kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient) -> Connection:
    """The way to a token-protected Ray of a RayCluster, from outside."""
    manifest = a_manifest("mine", authOptions={"mode": "token"})
    await kubernetes_client.create_cluster(manifest)

    async def ready() -> bool:
        return (await kubernetes_client.get_cluster("ray", "mine")).is_true("HeadPodReady")

    await wait_until(ready, description="the head is ready")
    token = await kubernetes_client.secret_value("ray", "mine", "auth_token")
    return Connection(
        kubernetes_client.proxy_address("ray", "mine-head-svc"),
        token=TokenSource(literal=token),
        gateway=kubernetes_client.gateway,
    )


@pytest.fixture
async def jobs(connection: Connection) -> AsyncIterator[JobsClient]:
    async with JobsClient(connection) as opened:
        yield opened


def ray_of(kubernetes: FakeKubernetes) -> FakeRay:
    return kubernetes.heads.by_cluster["mine"]  # type: ignore[attr-defined]


async def test_the_whole_jobs_api_works(jobs: JobsClient, kubernetes: FakeKubernetes) -> None:
    assert (await jobs.version()).ray_version == "2.60.0"
    assert await jobs.submit(JOB) == "a-job"
    with pytest.raises(JobAlreadyExists):
        await jobs.submit(JOB)
    assert [job.submission_id for job in await jobs.list()] == ["a-job"]
    with pytest.raises(JobNotFound):
        await jobs.get("another")
    await jobs.stop("a-job")
    await jobs.put_package("a.zip", b"x" * (1 << 19))
    assert await jobs.has_package("a.zip")
    assert not await jobs.has_package("b.zip")
    assert (await jobs.resources()).nodes


async def test_each_token_goes_to_its_own_side(
    jobs: JobsClient, connection: Connection, kubernetes: FakeKubernetes
) -> None:
    await jobs.version()
    at_kubernetes = kubernetes.requests.headers[-1]
    assert at_kubernetes["authorization"] == "Bearer worker-token"
    at_ray = ray_of(kubernetes).requests.headers[-1]
    assert "authorization" not in at_ray
    assert at_ray["x-ray-authorization"] == f"Bearer {connection.token.literal}"


async def test_a_wrong_token_of_ray_is_rays_refusal(connection: Connection) -> None:
    wrong = Connection(
        connection.address, token=TokenSource(literal="x"), gateway=connection.gateway
    )
    async with JobsClient(wrong) as jobs:
        with pytest.raises(NotAuthorized, match="RAY_AUTH_TOKEN"):
            await jobs.version()


async def test_a_missing_rule_is_kubernetes_refusal(
    jobs: JobsClient, kubernetes: FakeKubernetes
) -> None:
    kubernetes.worker.take_away("services/proxy")
    with pytest.raises(NotAuthorized, match="services/proxy") as caught:
        await jobs.get("a-job")
    assert "RAY_AUTH_TOKEN" not in str(caught.value)


async def test_credentials_of_kubernetes_are_renewed_once_for_all(
    kubernetes: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("worker-token")
    path = kubernetes.write_kubeconfig(tmp_path, user={"tokenFile": str(token)})
    monkeypatch.setenv("KUBECONFIG", str(path))
    async with KubernetesClient() as client:
        await client.create_cluster(a_manifest("mine"))
        await wait_until(lambda: "mine" in kubernetes.heads.by_cluster, description="a head")  # type: ignore[attr-defined]
        address = client.proxy_address("ray", "mine-head-svc")
        async with JobsClient(Connection(address, gateway=client.gateway)) as jobs:
            await jobs.version()
            kubernetes.users = {"new-token": kubernetes.worker}
            with pytest.raises(NotAuthorized, match="does not accept the worker's credentials"):
                await jobs.version()
            token.write_text("new-token")
            await jobs.version()
            assert kubernetes.requests.headers[-1]["authorization"] == "Bearer new-token"
            token.unlink()
            kubernetes.users.clear()
            with pytest.raises(ClusterUnreachable, match="cannot be read"):
                await jobs.version()


async def test_a_service_that_is_gone_is_not_a_missing_job(
    jobs: JobsClient, kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    await kubernetes_client.delete_cluster("ray", "mine")

    async def gone() -> bool:
        try:
            await kubernetes_client.get_cluster("ray", "mine")
        except ObjectMissing:
            return True
        return False

    await wait_until(gone, description="the cluster is gone")
    with pytest.raises(ClusterUnreachable, match="answered in place of"):
        await jobs.get("a-job")
    # There was no service to pass it on to.
    with pytest.raises(ClusterUnreachable):
        await jobs.submit(JOB)


async def test_a_head_that_is_down_leaves_a_submission_open(
    jobs: JobsClient, kubernetes: FakeKubernetes
) -> None:
    await ray_of(kubernetes).stop_listening()
    with pytest.raises(ClusterUnreachable, match="HTTP 503"):
        await jobs.get("a-job")
    with pytest.raises(AmbiguousError, match="HTTP 503"):
        await jobs.submit(JOB)


async def test_a_lost_answer_of_a_submission_is_ambiguous(
    jobs: JobsClient, kubernetes: FakeKubernetes
) -> None:
    kubernetes.faults.add(Fault("POST", "/proxy/api/jobs/$", Kind.ACT_THEN_DROP))
    with pytest.raises(AmbiguousError):
        await jobs.submit(JOB)
    assert "a-job" in ray_of(kubernetes).jobs


async def test_nothing_is_sent_to_an_agent_of_loopback_behind_a_gateway(
    connection: Connection, kubernetes: FakeKubernetes
) -> None:
    """A kubeconfig of 127.0.0.1 (kind, an ssh tunnel) does not make the nodes this machine."""
    agent = ray_of(kubernetes).address
    async with LogsClient(connection) as logs:
        with pytest.raises(AgentUnreachable, match="the cluster is on another machine"):
            await logs.from_agent(agent, "job-driver-a-job.log", start=0, room=10)
