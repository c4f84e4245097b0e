"""A key of a `cluster_source` is renewed on the work pool, and the old one revoked."""

from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from pydantic import SecretStr

from prefect_ray_worker.clusters.plugin import AskedCluster, ClusterPlugin, SourceFields
from prefect_ray_worker.clusters.third_party import PluginClusters
from prefect_ray_worker.config.configuration import RayJobConfiguration
from tests.cluster_plugins import install
from tests.unit.clusters.kuberay.shared_stage import UnsentEvents, View

JOB = f"prefect-{uuid4()}-0123456789ab"


class Fields(SourceFields):
    key: SecretStr


class Cloud(ClusterPlugin[Fields]):
    """Refuses all keys but one."""

    Fields = Fields
    key: ClassVar[str] = "old"

    def _check(self, fields: Fields) -> None:
        if fields.key.get_secret_value() != self.key:
            raise PermissionError("HTTP 401")

    async def acquire(self, asked: AskedCluster[Fields], tell: Any) -> Any: ...

    async def look(self, asked: AskedCluster[Fields]) -> None: ...

    async def release(self, asked: AskedCluster[Fields]) -> None:
        self._check(asked.fields)

    async def why_gone(self, asked: AskedCluster[Fields]) -> str | None:
        self._check(asked.fields)
        return "it was deleted"


def with_key(key: str) -> RayJobConfiguration:
    return RayJobConfiguration(cluster_source={"type": "cloud", "key": key})


async def test_a_run_that_began_with_the_old_key_is_let_go_of_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sweep failed until the worker was restarted."""
    install(tmp_path / "site", monkeypatch, {"cloud": f"{__name__}:Cloud"}, {})
    source, view = PluginClusters(UnsentEvents()), View([])
    await source.sweep(view, with_key("old"), print)
    plan = await source.plan(with_key("old"), JOB)
    assert plan is not None
    assert plan.ref is not None
    monkeypatch.setattr(Cloud, "key", "new")
    assert "HTTP 401" in (await source.release(plan.ref, failed=False) or "")
    assert await source.why_gone(plan.ref) is None
    await source.plan(with_key("new"), None)
    assert await source.why_gone(plan.ref) == "it was deleted"
    await source.sweep(view, with_key("new"), print)
    await source.sweep(view, with_key("new"), print)
