"""A key of a `cluster_source` is renewed, and the old one revoked."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from pydantic import SecretStr

from prefect_ray_worker.clusters import plugin_places
from prefect_ray_worker.clusters.plugin import (
    AskedCluster,
    ClusterPlugin,
    MadeCluster,
    SourceFields,
)
from prefect_ray_worker.clusters.third_party import PluginClusters
from prefect_ray_worker.config.cluster_source import DEFAULT_START_TIMEOUT
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import ClusterSourceUnclear
from prefect_ray_worker.shared.ids import ClusterRef
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


class Listing(Cloud):
    """Has accounts, each with clusters and with the keys that it takes."""

    keys: ClassVar[dict[str, set[str]]] = {}
    asked_with: ClassVar[list[str]] = []

    def _check(self, fields: Fields) -> None:
        if fields.key.get_secret_value() not in self.keys:
            raise PermissionError("HTTP 401")

    async def release(self, asked: AskedCluster[Fields]) -> None:
        self._check(asked.fields)
        self.keys[asked.fields.key.get_secret_value()].discard(asked.name)

    async def made(self, fields: Fields, pool_id: str) -> list[MadeCluster]:
        key = fields.key.get_secret_value()
        self.asked_with.append(key)
        self._check(fields)
        return [MadeCluster(name, datetime.now(UTC)) for name in self.keys[key]]


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Install the source, and return its clusters by key; keys of one account share a set."""
    install(tmp_path / "site", monkeypatch, {"cloud": f"{__name__}:Listing"}, {})
    monkeypatch.setattr(Listing, "keys", {})
    monkeypatch.setattr(Listing, "asked_with", [])
    return Listing.keys


async def begin(source: PluginClusters, key: str, clusters: set[str]) -> ClusterRef:
    """Plan a run with a key, and make its cluster."""
    plan = await source.plan(with_key(key), f"prefect-{uuid4()}-0123456789ab")
    assert plan is not None
    assert plan.ref is not None
    clusters.add(plan.ref.name)
    return plan.ref


@pytest.mark.parametrize("lists_both", [True, False])
async def test_a_key_that_a_deployment_renews_is_used_for_its_earlier_runs(
    accounts: dict[str, set[str]], lists_both: bool
) -> None:
    """Each sweep failed once for each old key, until the worker was restarted."""
    source, view = PluginClusters(UnsentEvents()), View([])
    accounts["old"] = clusters = set[str]()
    ref = await begin(source, "old", clusters)
    await source.sweep(view, None, print)
    accounts["new"] = clusters
    await begin(source, "new", clusters)
    if lists_both:
        await source.sweep(view, None, print)
    del accounts["old"]
    await source.sweep(view, None, print)
    await source.release(ref, failed=False)
    assert ref.name not in clusters
    Listing.asked_with.clear()
    await source.sweep(view, None, print)
    assert Listing.asked_with == ["new"]


async def test_an_account_that_fails_for_a_while_is_still_swept(
    accounts: dict[str, set[str]],
) -> None:
    source, view = PluginClusters(UnsentEvents()), View([])
    accounts |= {"one": set(), "other": set()}
    for key in ("one", "other"):
        await begin(source, key, accounts[key])
    await source.sweep(view, None, print)
    clusters = accounts.pop("one")
    with pytest.raises(ClusterSourceUnclear, match="HTTP 401"):
        await source.sweep(view, None, print)
    accounts["one"] = clusters
    Listing.asked_with.clear()
    await source.sweep(view, None, print)
    assert set(Listing.asked_with) == {"one", "other"}


async def test_a_place_that_is_empty_is_swept_for_a_while_only(
    accounts: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, view = PluginClusters(UnsentEvents()), View([])
    accounts["old"] = set()
    await source.plan(with_key("old"), JOB)
    await source.sweep(view, None, print)
    monkeypatch.setattr(plugin_places, "DRAIN_SECONDS", -DEFAULT_START_TIMEOUT)
    other = PluginClusters(UnsentEvents())
    await other.plan(with_key("old"), JOB)
    for swept in (source, other):
        await swept.sweep(view, None, print)
    Listing.asked_with.clear()
    await other.sweep(view, None, print)
    assert not Listing.asked_with
    await source.sweep(view, None, print)
    assert Listing.asked_with == ["old"], "its cluster may still start"


async def test_a_key_that_nothing_replaces_is_tried_for_a_day(
    accounts: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, view, told = PluginClusters(UnsentEvents()), View([]), list[str]()
    accounts["old"] = clusters = set[str]()
    ref = await begin(source, "old", clusters)
    await source.sweep(view, None, print)
    del accounts["old"]
    await source.release(ref, failed=False)
    with pytest.raises(ClusterSourceUnclear, match="HTTP 401"):
        await source.sweep(view, None, told.append)
    monkeypatch.setattr(plugin_places, "_HOPE_SECONDS", 0.0)
    for _ in range(2):
        await source.sweep(view, None, told.append)
    assert len(told) == 1
    assert ref.name in told[0]


async def test_a_run_is_not_looked_for_with_the_key_of_another_account(
    accounts: dict[str, set[str]],
) -> None:
    """The pool got it while the run went on, which then was Crashed: its cluster seemed gone."""
    source, view = PluginClusters(UnsentEvents()), View([])
    accounts |= {"one": set(), "other": set()}
    await source.plan(with_key("one"), None)
    ref = await begin(source, "one", accounts["one"])
    for _ in range(2):
        await source.sweep(view, with_key("other"), print)
    await source.release(ref, failed=False)
    assert not accounts["one"]
