"""The clusters of a `cluster_source`: who lets go of them, and when they count as gone."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import anyio
import pytest

from prefect_ray_worker.clusters.plugin import (
    AskedCluster,
    ClusterPlugin,
    MadeCluster,
    SourceFields,
)
from prefect_ray_worker.clusters.third_party import PluginClusters
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import ClusterFailed, ClusterSourceUnclear
from prefect_ray_worker.ray_api.connection import Connection
from tests.cluster_plugins import install
from tests.unit.clusters.kuberay.shared_stage import Run, UnsentEvents, View


class Fields(SourceFields):
    region: str


class Regions(ClusterPlugin[Fields]):
    """Has clusters by region, each made long ago."""

    Fields = Fields
    clusters: ClassVar[dict[str, set[str]]] = {}
    held: ClassVar[set[str]] = set()

    async def acquire(self, asked: AskedCluster[Fields], tell: Any) -> Any: ...

    async def look(self, asked: AskedCluster[Fields]) -> Connection | None:
        is_there = asked.name in self.clusters[asked.fields.region]
        return Connection("http://ray:8265") if is_there else None

    async def release(self, asked: AskedCluster[Fields]) -> None:
        if asked.name in self.held:
            raise PermissionError("it is held")
        self.clusters[asked.fields.region].discard(asked.name)

    async def why_gone(self, asked: AskedCluster[Fields]) -> str | None:
        return None if asked.name in self.clusters[asked.fields.region] else "it was deleted"

    async def made(self, fields: Fields, pool_id: str) -> list[MadeCluster]:
        at = datetime.now(UTC) - timedelta(days=1)
        return [MadeCluster(name, at) for name in sorted(self.clusters[fields.region])]


def in_region(region: str, **common: Any) -> RayJobConfiguration:
    return RayJobConfiguration(cluster_source={"type": "regions", "region": region, **common})


@pytest.fixture
def regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Install the source, and return its clusters by region."""
    install(tmp_path / "site", monkeypatch, {"regions": f"{__name__}:Regions"}, {})
    monkeypatch.setattr(Regions, "clusters", {"north": set(), "south": set()})
    monkeypatch.setattr(Regions, "held", set())
    return Regions.clusters


async def test_a_cluster_that_is_not_deleted_does_not_keep_from_the_others(
    regions: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep ended there each minute, and gave the whole place up after a day."""
    source, view, told = PluginClusters(UnsentEvents()), View([]), list[str]()
    first, second = sorted(f"ray-{uuid4().hex}-0123456789ab" for _ in range(2))
    regions["north"] |= {first, second}
    Regions.held.add(first)
    monkeypatch.setattr("prefect_ray_worker.clusters.plugin_places._HOPE_SECONDS", 0.0)
    await source.plan(in_region("north"), f"prefect-{uuid4()}-0123456789ab")
    for _ in range(2):
        with pytest.raises(ClusterSourceUnclear, match="it is held"):
            await source.sweep(view, None, told.append)
        assert regions["north"] == {first}
    assert told == [f"Deleting the cluster regions:{second}: its flow run was deleted."]


async def test_a_cluster_with_other_fields_than_its_run_has_now_does_not_count_as_gone(
    regions: dict[str, set[str]],
) -> None:
    """A redeploy to another region and a restart of the worker ended a healthy run as Crashed."""
    job = f"prefect-{uuid4()}-0123456789ab"
    before = await PluginClusters(UnsentEvents()).plan(in_region("north"), job)
    assert before is not None
    ref = before.ref
    assert ref is not None
    regions["north"].add(ref.name)
    source = PluginClusters(UnsentEvents())
    plan = await source.plan(in_region("south"), job, ref)
    assert plan is not None
    assert await source.look(plan) is None
    assert plan.names(ref), "a changed field need not change the place"
    assert not plan.decides(ref)
    assert await source.why_gone(ref) is None
    assert "delete the cluster there" in (await source.release(ref, failed=False) or "")
    await source.plan(in_region("north"), job, ref)
    regions["north"].clear()
    assert await source.why_gone(ref) == "it was deleted"


class Unlisted(Regions):
    """Does not say which clusters it has."""

    made = ClusterPlugin[Fields].made


@pytest.mark.parametrize("begins_again", [False, True], ids=["time is over", "begins again"])
async def test_a_failed_cluster_that_its_source_does_not_list_goes_in_the_end(
    regions: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch, *, begins_again: bool
) -> None:
    """The sweep, to which it was left, did not find it."""
    monkeypatch.setattr(f"{__name__}.Regions", Unlisted)
    source, run_id, now = PluginClusters(UnsentEvents()), uuid4(), anyio.current_time()
    kept = in_region("north", keep_failed_seconds=60)
    plan = await source.plan(kept, f"prefect-{run_id}-0123456789ab")
    assert plan is not None
    assert plan.ref is not None
    regions["north"].add(plan.ref.name)
    assert "delete it yourself" in (await source.release(plan.ref, failed=True) or "")
    await source.sweep(View([]), None, print)
    assert regions["north"] == {plan.ref.name}, "for a look at it"
    if begins_again:
        again = await source.plan(kept, f"prefect-{run_id}-ba9876543210")
        assert again is not None
        with pytest.raises(ClusterFailed, match="returned no Connection"):
            await source.acquire(again, Run())
    else:
        monkeypatch.setattr(anyio, "current_time", lambda: now + 120)
        await source.sweep(View([]), None, print)
    assert not regions["north"]
