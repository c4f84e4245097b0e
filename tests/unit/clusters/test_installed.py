"""A source of another package is found, or the error says which package and what to do."""

from pathlib import Path
from uuid import uuid4

import pytest

from prefect_ray_worker.clusters.installed import load_plugin
from prefect_ray_worker.clusters.third_party import PluginClusters
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import ClusterSourceMissing, InvalidConfiguration
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents
from tests.cluster_plugins import install

PLUGIN = """
from prefect_ray_worker.clusters.plugin import ClusterPlugin, SourceFields

class Fields(SourceFields):
    region: str
    nodes: int = 1

class Clouds(ClusterPlugin):
    Fields = Fields
    async def acquire(self, asked, tell): ...
    async def look(self, asked): ...
    async def release(self, asked): ...
"""
JOB = f"prefect-{uuid4()}-0123456789ab"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


async def planned(given: dict[str, object]) -> str:
    configuration = RayJobConfiguration(cluster_source=given)
    plan = await PluginClusters(ClusterEvents()).plan(configuration, JOB)
    assert plan is not None
    return str(plan.ref)


async def test_a_plan_has_a_name_that_follows_from_the_attempt(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, monkeypatch, {"clouds": "clouds_a:Clouds"}, {"clouds_a": PLUGIN})
    ref = await planned({"type": "clouds", "region": "north", "start_timeout_seconds": 60})
    assert ref.startswith("clouds:ray-")
    assert ref.endswith("-0123456789ab")
    assert ref == await planned({"type": "clouds", "region": "north"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nodes": 2}, "job variable 'cluster_source.region' "),
        ({"region": "a", "nodes": "s3cret"}, "job variable 'cluster_source.nodes' "),
        ({"region": "a", "colour": "s3cret"}, "job variable 'cluster_source.colour' "),
    ],
)
async def test_a_wrong_field_is_named_and_its_value_is_not(
    given: dict[str, object], said: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, monkeypatch, {"clouds": "clouds_b:Clouds"}, {"clouds_b": PLUGIN})
    with pytest.raises(InvalidConfiguration) as caught:
        await planned({"type": "clouds", **given})
    assert said in str(caught.value)
    assert "nodes, region" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_source_that_is_not_installed_is_refused_with_those_that_are(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, monkeypatch, {"clouds": "clouds_c:Clouds"}, {"clouds_c": PLUGIN})
    with pytest.raises(ClusterSourceMissing, match=r"'cloud', and no package .* Installed: clouds"):
        load_plugin("cloud")


@pytest.mark.parametrize(
    ("target", "text", "said"),
    [
        ("broken_a:Clouds", "import no_such_module", "No module named 'no_such_module'"),
        ("broken_b:Nothing", PLUGIN, "has no attribute 'Nothing'"),
        ("broken_c:Clouds", "class Clouds: ...", "is no ClusterPlugin of this release"),
        ("broken_d:Clouds", "raise OSError('http://me:s3cret@a/')", "OSError"),
    ],
)
def test_a_broken_source_names_its_package_and_the_way_out(
    target: str, text: str, said: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, monkeypatch, {"clouds": target}, {target.partition(":")[0]: text})
    with pytest.raises(ClusterSourceMissing) as caught:
        load_plugin("clouds")
    assert "acme-clusters 1.2.3" in str(caught.value)
    assert said in str(caught.value)
    assert "pdate" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_two_packages_with_one_name_are_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        package = f"acme-{number}"
        folder = site / package
        install(folder, monkeypatch, {"clouds": "m:C"}, {"m": PLUGIN}, package=package)
    with pytest.raises(ClusterSourceMissing, match=r"acme-1 1\.2\.3, acme-2 1\.2\.3"):
        load_plugin("clouds")
