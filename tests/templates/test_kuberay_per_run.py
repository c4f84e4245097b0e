"""A worker with the template's Role, and no more, can do what a run needs."""

import json
import re
from typing import Any

import pytest
import yaml

from prefect_ray_worker.clusters.kuberay.manifest import ray_cluster
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.doctor.kuberay import examine_kuberay
from prefect_ray_worker.doctor.report import Grade, KubeRaySubject
from prefect_ray_worker.errors import KubernetesForbidden
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from tests.fake_kubernetes import FakeKubernetes
from tests.templates.folders import TEMPLATES, rules_of
from tests.waiting import wait_until

FOLDER = TEMPLATES / "kuberay-per-run"


def asked(kubernetes: FakeKubernetes, **fields: Any) -> KubeRay:
    variables = yaml.safe_load((FOLDER / "job-variables.yaml").read_text())["kuberay"]
    config = {"config": kubernetes.kubeconfig(), "context_name": "fake"}
    return KubeRay(**{**variables, "kubeconfig": config, **fields})


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("scope", ["run", "shared"])
async def test_the_doctor_is_content_with_the_role(
    kubernetes: FakeKubernetes, inside: bool, scope: str
) -> None:
    files = ("rbac.yaml",) if inside else ("rbac.yaml", "rbac-outside.yaml")
    folder = {"run": "kuberay-per-run", "shared": "kuberay-shared"}[scope]
    kubernetes.worker.rules = rules_of(folder, *files)
    variables = asked(kubernetes, access="service" if inside else "proxy", scope=scope)
    checks = [check async for check in examine_kuberay(variables, wait=5)]
    assert [(check.subject, check.grade) for check in checks] == [
        (subject, Grade.OK) for subject in KubeRaySubject
    ], checks


async def test_the_doctor_misses_the_rights_for_a_shared_cluster_in_the_role_per_run(
    kubernetes: FakeKubernetes,
) -> None:
    kubernetes.worker.rules = rules_of("kuberay-per-run", "rbac.yaml", "rbac-outside.yaml")
    variables = asked(kubernetes, access="proxy", scope="shared")
    checks = {check.subject: check async for check in examine_kuberay(variables, wait=5)}
    said = checks[KubeRaySubject.RIGHTS]
    assert "patch rayclusters.ray.io, delete services/proxy" in said.says
    assert "kuberay-shared/rbac.yaml" in said.advice


async def test_the_role_lets_the_worker_read_no_other_secret(kubernetes: FakeKubernetes) -> None:
    kubernetes.worker.rules = rules_of("kuberay-per-run", "rbac.yaml", "rbac-outside.yaml")
    for name in ("ray-token", "prefect-api"):
        data = {"auth_token": "dG9rZW4="}
        kubernetes.store.create("secrets", "ray", {"metadata": {"name": name}, "data": data})
    async with KubernetesClient(Kubeconfig.of_block(kubernetes.kubeconfig())) as client:
        assert await client.secret_value("ray", "ray-token", "auth_token") == "token"
        with pytest.raises(KubernetesForbidden):
            await client.secret_value("ray", "prefect-api", "auth_token")


async def test_a_cluster_of_the_job_variables_starts_with_the_pools_token(
    kubernetes: FakeKubernetes,
) -> None:
    for name, key in (("ray-token", "auth_token"), ("prefect-api", "api-key")):
        document = {"metadata": {"name": name}, "data": {key: "dG9rZW4="}}
        kubernetes.store.create("secrets", "ray", document)
    job = "prefect-00000000-0000-0000-0000-000000000001-000000000001"
    manifest = ray_cluster(asked(kubernetes), job_id=job, pool_id="a", namespace="ray")
    async with KubernetesClient(Kubeconfig.of_block(kubernetes.kubeconfig())) as client:
        created = await client.create_cluster(manifest)

        async def provisioned() -> bool:
            cluster = await client.get_cluster("ray", created.name)
            return cluster.is_true("RayClusterProvisioned")

        await wait_until(provisioned, description="all pods are ready")
        pods = await client.pods("ray", created.name)
    assert sorted(pod.labels["ray.io/group"] for pod in pods) == ["cpu", "headgroup"]
    assert kubernetes.heads.by_cluster[created.name].token == "token"  # type: ignore[attr-defined]


async def test_the_doctor_says_that_the_role_lacks_the_secrets_of_single_clusters(
    kubernetes: FakeKubernetes,
) -> None:
    kubernetes.worker.rules = rules_of("kuberay-per-run", "rbac.yaml")
    variables = asked(kubernetes, access="service", token_secret=None)
    checks = {check.subject: check async for check in examine_kuberay(variables, wait=5)}
    assert checks[KubeRaySubject.RIGHTS].grade is Grade.FAILED
    assert "get secrets" in checks[KubeRaySubject.RIGHTS].says


def test_pool_has_kuberay_before_the_workers_start() -> None:
    """A worker would create the pool without it; then the doctor and the sweep fail."""
    readme = (FOLDER / "README.md").read_text()
    (name,) = re.findall(r"--pool=(\S+?)[\],]", (FOLDER / "sweep.yaml").read_text())
    command = rf"prefect work-pool create {name} --type ray --base-job-template (\S+)\n"
    created = re.search(command, readme)
    assert created is not None
    assert created.start() < readme.index("kubectl apply") < readme.index(f"doctor {name}")
    template = json.loads((FOLDER / created[1]).read_text())
    KubeRay(**template["variables"]["properties"]["kuberay"]["default"])
