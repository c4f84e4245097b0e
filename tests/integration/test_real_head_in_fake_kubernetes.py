"""A real Ray as the head of a RayCluster, reached from outside through the service proxy."""

import pytest

from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient, log_file_name
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.fake_kubernetes import CRD, MISSING_CRD, FakeKubernetes, RealHeads, a_manifest
from tests.real_ray import marked
from tests.waiting import wait_until

# `kuberay/test_kuberay_real_ray.py` runs a whole flow that way in `make test`.
pytestmark = [pytest.mark.ray, pytest.mark.extra]


@pytest.mark.skipif(not CRD.exists(), reason=MISSING_CRD)
async def test_a_job_runs_on_a_real_ray_with_a_token_and_all_of_it_ends_with_the_cluster() -> None:
    heads = RealHeads()
    async with FakeKubernetes(heads=heads) as kubernetes:
        config = Kubeconfig.of_block(kubernetes.kubeconfig())
        async with KubernetesClient(config) as client:
            await client.create_cluster(a_manifest("mine", authOptions={"mode": "token"}))

            async def ready() -> bool:
                return (await client.get_cluster("ray", "mine")).is_true("HeadPodReady")

            await wait_until(ready, timeout=90, description="the head is ready")
            token = await client.secret_value("ray", "mine", "auth_token")
            connection = Connection(
                client.proxy_address("ray", "mine-head-svc"),
                token=TokenSource(literal=token),
                gateway=client.gateway,
            )
            await _run_a_job(connection)
            temp_dir = str(heads.by_cluster["mine"].temp_dir)
            await client.delete_cluster("ray", "mine")
            await wait_until(
                lambda: not kubernetes.clusters(), timeout=30, description="the cluster is gone"
            )
            assert not marked(temp_dir)


async def _run_a_job(connection: Connection) -> None:
    async with JobsClient(connection) as jobs, LogsClient(connection) as logs:
        request = JobSubmitRequest(
            entrypoint="echo hello from $RAY_AUTH_MODE",
            submission_id="a-job",
            runtime_env={},
            metadata={},
        )
        await jobs.submit(request)

        async def ended() -> bool:
            return (await jobs.get("a-job")).is_terminal

        await wait_until(ended, timeout=60, description="the job ends")
        job = await jobs.get("a-job")
        assert (job.status, job.driver_exit_code) == ("SUCCEEDED", 0)
        assert job.driver_node_id is not None
        name = log_file_name("a-job")
        piece = await logs.from_dashboard(job.driver_node_id, name, lines=5, skip=0, room=1000)
        assert b"hello from token" in piece.data
