"""Which cluster a run goes to, and who can reach it."""

import platform
import re
from copy import deepcopy
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.existing import (
    ExistingClusters,
    cluster_at,
    greeting_of,
    warn_of_local_api,
)
from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.runs.recovery.pool_runs import PoolRuns
from prefect_ray_worker.shared.ids import ClusterRef
from prefect_ray_worker.worker import RayWorker
from tests.fake_ray import FakeRay, Fault, Kind
from tests.ports import free_port
from tests.unit.clusters import Heard
from tests.unit.config import CLIENT

JOB = "http://job:8265"
BLOCK = "http://block:8265"
SETTING = "http://setting:8265"
JOB_ID = "prefect-9838ecb1-28dc-4001-9aa4-e48a7876be0c-0123456789ab"


def sources(directory: Path, setting: str | None = None) -> ClusterSources:
    return ClusterSources.of_worker(directory, setting)


async def greeting(setting: str | None, directory: Path, **defaults: object) -> str:
    """Return what a worker says that starts for a pool with some defaults."""
    template = deepcopy(RayWorker.get_default_base_job_template())
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value
    told: list[str] = []
    await sources(directory, setting).say_where_runs_go(template, CLIENT, told.append)
    assert len(told) <= 1
    return "".join(told)


@pytest.mark.parametrize("names", ["setting", "address of the pool", "cluster of the pool"])
async def test_a_worker_that_starts_says_which_cluster_it_uses(
    ray: FakeRay, tmp_path: Path, names: str
) -> None:
    """It said "started!" and nothing else, also where its cluster did not answer."""

    async def of(address: str) -> str:
        match names:
            case "setting":
                return await greeting(address, tmp_path)
            case "address of the pool":
                return await greeting(SETTING, tmp_path, address=address)
            case _:
                return await greeting(None, tmp_path, cluster={"address": address})

    assert re.match(
        rf"Flow runs go to Ray 2\.\d+\S* at {ray.address}, 1 node,", await of(ray.address)
    )
    ray.faults.add(Fault("GET", "/api/version", kind=Kind.STATUS, status=401, times=None))
    refused = await of(ray.address)
    assert "cannot be used now: " in refused
    assert "401" in refused
    silent = f"http://127.0.0.1:{free_port()}"
    assert f"The Ray cluster at {silent} cannot be used now: " in await of(silent)


async def test_a_worker_that_starts_says_that_a_default_of_its_pool_cannot_work(
    tmp_path: Path,
) -> None:
    said = await greeting(None, tmp_path, address="ray://head:10001")
    assert said.startswith("The defaults of the work pool cannot be used: ")
    assert "'address'" in said


async def test_a_worker_starts_if_the_ca_file_of_its_cluster_cannot_be_read(tmp_path: Path) -> None:
    """A line that only informs ended the worker."""
    half = tmp_path / "half.pem"
    half.write_text("-----BEGIN CERTIFICATE-----\nMIIB")
    for file in (tmp_path / "missing.pem", half):
        said = await greeting_of(Connection("https://ray-head:8265", ca_file=str(file)))
        assert said.startswith("The Ray cluster at https://ray-head:8265 cannot be used now: ")
        assert file.name in said


async def test_a_worker_whose_clusters_are_made_for_runs_names_none(tmp_path: Path) -> None:
    assert await greeting(None, tmp_path) == ""
    assert await greeting(SETTING, tmp_path, kuberay={"image": "rayproject/ray:2.60.0"}) == ""


@pytest.mark.parametrize(
    ("variables", "setting", "expected"),
    [
        ({"address": JOB, "cluster": RayCluster(address=BLOCK)}, SETTING, JOB),
        ({"cluster": RayCluster(address=BLOCK)}, SETTING, BLOCK),
        ({}, SETTING, SETTING),
    ],
)
async def test_precedence_is_job_variable_block_setting(
    variables: dict[str, object], setting: str, expected: str, tmp_path: Path
) -> None:
    configuration = RayJobConfiguration(**variables)
    told: list[str] = []
    chosen = sources(tmp_path, setting)
    cluster = await chosen.acquire(configuration, JOB_ID, Heard(told.append))
    assert cluster.ref == ClusterRef.of_address(expected)
    assert await chosen.find(configuration) == cluster
    assert await chosen.release(cluster.ref, failed=False) is None
    assert await chosen.why_gone(cluster.ref) is None
    await chosen.close(told.append)
    assert not told, "clusters that run already are neither started nor stopped"


async def test_looking_for_a_local_cluster_starts_none(tmp_path: Path) -> None:
    chosen = sources(tmp_path / "state")
    assert await chosen.find(RayJobConfiguration()) is None
    await chosen.take_over(pytest.fail)
    await chosen.close(pytest.fail)
    assert not (tmp_path / "state").exists()


async def test_the_environment_of_ray_chooses_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    assert await sources(tmp_path).find(RayJobConfiguration()) is None


class Swept(ExistingClusters):
    """Cannot be swept, if it is in trouble."""

    def __init__(self, trouble: str = "") -> None:
        super().__init__(None)
        self.trouble = trouble
        self.sweeps = 0

    async def sweep(self, *_: object) -> None:
        self.sweeps += 1
        if self.trouble:
            raise RuntimeError(self.trouble)


async def test_a_source_that_cannot_be_swept_keeps_no_other_from_its_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    every = Swept("no rights"), Swept("no network"), Swept()
    view = PoolRuns(uuid4(), FlowRuns(CLIENT), lambda _: True)
    with pytest.raises(RuntimeError, match="no rights"):
        await ClusterSources(*every).sweep(view, None, pytest.fail)
    assert [source.sweeps for source in every] == [1, 1, 1]
    assert [record.message for record in caplog.records] == ["no network"]


def test_a_setting_that_is_no_address_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidConfiguration, match="PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS"):
        ExistingClusters("ray://head:10001")


@pytest.mark.parametrize(
    ("address", "host"),
    [("http://127.0.0.1:8265", platform.node()), ("http://head:8265", None)],
)
def test_a_cluster_on_loopback_is_reachable_from_this_machine_only(
    address: str, host: str | None
) -> None:
    assert cluster_at(Connection(address)).reachable_from == host


@pytest.mark.parametrize(
    ("api", "address", "warned"),
    [
        ("http://127.0.0.1:4200/api", "http://head:8265", True),
        ("http://0.0.0.0:4200/api", "http://head:8265", True),
        ("http://127.0.0.1:4200/api", "http://localhost:8265", False),
        ("https://prefect/api", "http://head:8265", False),
        (None, "http://head:8265", False),
    ],
)
def test_an_api_on_loopback_is_warned_of(api: str | None, address: str, warned: bool) -> None:
    told: list[str] = []
    warn_of_local_api(cluster_at(Connection(address)), api, told.append)
    assert bool(told) is warned
