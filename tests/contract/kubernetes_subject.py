"""A Kubernetes API server under test: the fake, or the one of `KUBERNETES_CONTRACT_KUBECONFIG`.

A real one needs KubeRay's custom resource definitions and an administrator's kubeconfig, and no
operator. All takes place in a namespace of its own, which is deleted afterwards.
"""

import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from prefect_ray_worker.kubernetes_api.models import RayClusterObject
from tests.fake_kubernetes import FakeKubernetes, Script, a_manifest

VARIABLE = "KUBERNETES_CONTRACT_KUBECONFIG"


@dataclass
class Subject:
    """A Kubernetes under test, by our client and by raw HTTP as an administrator."""

    client: KubernetesClient
    raw: httpx.AsyncClient
    namespace: str
    fake: FakeKubernetes | None

    def manifest(self, name: str | None = None, **metadata: Any) -> dict[str, Any]:
        """Return a suspended RayCluster: where there is an operator, it makes no pods."""
        found = a_manifest(name or f"ray-{uuid.uuid4().hex[:8]}", self.namespace, suspend=True)
        found["metadata"].update(metadata)
        return found

    async def create(self, name: str | None = None, **metadata: Any) -> RayClusterObject:
        return await self.client.create_cluster(self.manifest(name, **metadata))

    async def post(self, path: str, document: dict[str, Any]) -> None:
        answer = await self.raw.post(path, json=document)
        assert answer.is_success, answer.text

    async def limit_clusters(self, hard: int) -> None:
        """Set a quota on RayClusters, and wait until the server has counted them."""
        if self.fake is not None:
            self.fake.limit(hard, namespace=self.namespace)
            return
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "cap"},
            "spec": {"hard": {"count/rayclusters.ray.io": str(hard)}},
        }
        path = f"/api/v1/namespaces/{self.namespace}/resourcequotas"
        await self.post(path, quota)
        for _ in range(200):
            if "used" in (await self.raw.get(f"{path}/cap")).json().get("status", {}):
                return

    async def terminate_namespace(self) -> None:
        """Let the namespace go; something in it must be held by a finalizer."""
        if self.fake is not None:
            self.fake.store.namespaces[self.namespace] = "Terminating"
        else:
            await self.raw.delete(f"/api/v1/namespaces/{self.namespace}")

    async def let_go(self, cluster: RayClusterObject) -> None:
        """Take all finalizers off a cluster."""
        path = f"/apis/ray.io/v1/namespaces/{self.namespace}/rayclusters/{cluster.name}"
        answer = await self.raw.patch(
            path,
            content=json.dumps({"metadata": {"finalizers": None}}),
            headers={"Content-Type": "application/merge-patch+json"},
        )
        assert answer.is_success, answer.text


@asynccontextmanager
async def fake_subject() -> AsyncIterator[Subject]:
    async with FakeKubernetes() as fake:
        # An operator would change a cluster's version between two looks of a test.
        fake.scripts.default = Script(ignored=True)
        config = Kubeconfig.of_block(fake.kubeconfig("admin-token"))
        async with _opened(config) as (client, raw):
            yield Subject(client, raw, "ray", fake)


@asynccontextmanager
async def real_subject() -> AsyncIterator[Subject]:
    namespace = f"contract-{uuid.uuid4().hex[:8]}"
    text = yaml.safe_load(Path(os.environ[VARIABLE]).read_text())
    async with _opened(Kubeconfig.of_block(text)) as (client, raw):
        subject = Subject(client, raw, namespace, None)
        await subject.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
        try:
            yield subject
        finally:
            await raw.delete(f"/api/v1/namespaces/{namespace}")


@asynccontextmanager
async def _opened(
    config: Kubeconfig,
) -> AsyncIterator[tuple[KubernetesClient, httpx.AsyncClient]]:
    async with KubernetesClient(config) as client:
        headers = dict(await client.gateway.headers())
        async with httpx.AsyncClient(
            base_url=client.access.server,
            headers=headers,
            verify=client.gateway.tls,
            trust_env=False,
            timeout=30,
        ) as raw:
            yield client, raw
