"""Clusters that a source of another package makes: from the run's form to their end."""

import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Pending
from pydantic import SecretStr

from prefect_ray_worker.clusters.plugin import (
    AskedCluster,
    ClusterPlugin,
    MadeCluster,
    SourceFields,
)
from prefect_ray_worker.clusters.source import RunAndAttempt, RunOfCluster
from prefect_ray_worker.clusters.third_party import PluginClusters
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.doctor.examine import examine
from prefect_ray_worker.doctor.report import CheckSubject, Grade, SourceSubject
from prefect_ray_worker.errors import ClusterSourceMissing, InvalidConfiguration
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.runs.recovery.labels import Worker, owner_labels
from prefect_ray_worker.runs.recovery.pool_runs import PoolRuns
from prefect_ray_worker.runs.recovery.sweep import sweep_once
from prefect_ray_worker.shared.ids import (
    ClusterRef,
    attempt_name,
    own_cluster_name,
    present_claim,
    submission_id,
)
from prefect_ray_worker.testing import check_plugin
from tests.cluster_plugins import install
from tests.fake_ray import FakeRay
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import Pool, new_pool, set_timing
from tests.integration.stage import HEARTBEAT_SECONDS, STAGE_INTERVAL, report
from tests.waiting import wait_until

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "cluster-source" / "shell_clusters.py"
GUIDE = DOCS / "how-to" / "write-a-source-of-clusters.md"


class FakeFields(SourceFields):
    region: str
    key: SecretStr = SecretStr("")


class FakeClusters(ClusterPlugin[FakeFields]):
    """Fake Rays of this process, by the cluster's name; `pool` tells the pools apart."""

    Fields = FakeFields
    rays: ClassVar[dict[str, tuple[FakeRay, str, datetime]]] = {}
    trouble: ClassVar[str] = ""
    without_agent: ClassVar[bool] = False
    keys: ClassVar[list[str]] = []

    async def acquire(self, asked: AskedCluster[FakeFields], tell: Any) -> Connection:
        if self.trouble:
            raise RuntimeError(self.trouble)
        if asked.name not in self.rays:
            ray = FakeRay()
            ray.on_submit = RUNS_FOREVER
            ray.has_agent = not self.without_agent
            self.rays[asked.name] = (ray, asked.pool_id, datetime.now(UTC))
            await ray.listen_again()
        return Connection(self.rays[asked.name][0].address)

    async def look(self, asked: AskedCluster[FakeFields]) -> Connection | None:
        found = self.rays.get(asked.name)
        return None if found is None else Connection(found[0].address)

    async def release(self, asked: AskedCluster[FakeFields]) -> None:
        if asked.name in self.rays:
            ray, *_ = self.rays.pop(asked.name)
            await ray.__aexit__()

    async def why_gone(self, asked: AskedCluster[FakeFields]) -> str | None:
        return None if asked.name in self.rays else "the region has lost it"

    async def made(self, fields: FakeFields, pool_id: str) -> list[MadeCluster]:
        self.keys.append(fields.key.get_secret_value())
        of_pool = [(name, at) for name, (_, pool, at) in self.rays.items() if pool == pool_id]
        return [MadeCluster(name, at) for name, at in of_pool]

    async def examine(self, fields: FakeFields) -> AsyncIterator[str]:
        yield f"Region {fields.region} has room."
        if fields.region == "south":
            raise RuntimeError("The quota of region south is 0. Ask for more.")


SOURCE: dict[str, Any] = {"type": "fakes", "region": "north"}


@pytest.fixture
async def pool(
    prefect_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Pool]:
    """A pool whose runs get clusters of the source `fakes`."""
    install(tmp_path / "site", monkeypatch, {"fakes": f"{__name__}:FakeClusters"}, {})
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS", str(STAGE_INTERVAL))
    monkeypatch.setattr(PluginClusters, "poll", 0.2)
    set_timing(monkeypatch, report_grace=1.0, retry_delay=1.0, nodes_end=1.0)
    async with new_pool({"cluster_source": SOURCE}) as made:
        yield made
    for ray, *_ in FakeClusters.rays.values():
        await ray.__aexit__()
    FakeClusters.rays.clear()


async def ends(pool: Pool, run_id: UUID, state: StateType, text: str = "") -> None:
    run = await pool.wait_for(run_id, seconds=40)
    assert run.state is not None
    assert run.state.type == state, run.state
    assert re.search(text, run.state.message or ""), run.state.message


async def running(pool: Pool, **variables: Any) -> tuple[UUID, str, FakeRay]:
    run_id = await pool.start("adds", job_variables=variables)

    def names() -> list[str]:
        return [n for n, (ray, *_) in FakeClusters.rays.items() if run_id.hex in n and ray.jobs]

    (name,) = await wait_until(names, timeout=30, description="a job on a cluster of its own")
    await report(pool, run_id, StateType.RUNNING)
    await pool.wait_for_log(run_id, "is RUNNING")
    return run_id, name, FakeClusters.rays[name][0]


async def test_a_run_gets_a_cluster_of_the_source_that_goes_after_it(pool: Pool) -> None:
    async with pool.working():
        run_id, name, ray = await running(pool)
        pid = (await pool.read(run_id)).infrastructure_pid or ""
        assert pid.startswith(f"fakes:{name}/api/jobs/prefect-{run_id}-")
        (job,) = ray.jobs.values()
        await report(pool, run_id, StateType.COMPLETED)
        job.set("SUCCEEDED", driver_exit_code=0)
        await ends(pool, run_id, StateType.COMPLETED)
        await pool.wait_for_log(run_id, f"Deleting the cluster fakes:{name}.")
        assert name not in FakeClusters.rays


async def test_an_heir_goes_on_with_the_cluster(pool: Pool) -> None:
    async with pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        run_id, name, ray = await running(pool)
    async with pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        await pool.wait_for_log(run_id, "Following Ray Job", seconds=40)
        assert list(FakeClusters.rays) == [name]
        (job,) = [job for id_, job in ray.jobs.items() if str(run_id) in id_]
        job.set("FAILED", driver_exit_code=7)
        await ends(pool, run_id, StateType.CRASHED, "exit code 7")
        await wait_until(lambda: not FakeClusters.rays, timeout=20, description="its end")


async def test_cancelling_while_the_cluster_starts_deletes_it(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeClusters, "without_agent", True)
    async with pool.working():
        run_id = await pool.start("adds")
        await pool.wait_for_log(run_id, "it does not take jobs yet")
        await pool.cancel(run_id)
        await ends(pool, run_id, StateType.CANCELLED)
        await wait_until(lambda: not FakeClusters.rays, timeout=20, description="its end")


async def test_a_cluster_that_is_gone_crashes_its_run_with_the_reason(pool: Pool) -> None:
    async with pool.working():
        run_id, name, ray = await running(pool)
        FakeClusters.rays.pop(name)
        await ray.__aexit__()
        await ends(pool, run_id, StateType.CRASHED, "the region has lost it")


async def test_an_heir_says_in_the_words_of_the_source_why_a_cluster_is_gone(pool: Pool) -> None:
    """The run's message named Kubernetes."""
    deployment = await pool.deploy("adds")
    run = await pool.client.create_flow_run_from_deployment(deployment, state=Pending())
    claim = present_claim(await pool.client.read_flow_run_states(run.id))
    assert claim is not None
    ref = ClusterRef("fakes", own_cluster_name(submission_id(run.id, claim)))
    labels = owner_labels(Worker("dead", "1"), attempt_name(claim), ref, None)
    await pool.client.update_flow_run_labels(run.id, dict(labels))
    await report(pool, run.id, StateType.RUNNING)
    async with pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        await ends(pool, run.id, StateType.CRASHED, "is gone: the region has lost it")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        pytest.param(
            {"cluster_source": {"type": "nowhere"}},
            "type' is 'nowhere'.*Installed: fakes",
            marks=pytest.mark.extra,
        ),
        ({"cluster_source.colour": "red"}, "'cluster_source.colour'.*acme-clusters 1.2.3"),
        pytest.param(
            {"address": "http://a:8265"},
            "'cluster_source' .*stands beside address",
            marks=pytest.mark.extra,
        ),
        (
            {"cluster_source.start_timeout_seconds": 2},
            "^ClusterStartTimeout: .*did not take jobs within 2 s",
        ),
    ],
)
async def test_what_cannot_work_crashes_its_run_and_no_other(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any], said: str
) -> None:
    is_slow = "cluster_source.start_timeout_seconds" in variables
    monkeypatch.setattr(FakeClusters, "without_agent", is_slow)
    async with pool.working():
        run_id = await pool.start("adds", job_variables=variables)
        await ends(pool, run_id, StateType.CRASHED, said)
        monkeypatch.setattr(FakeClusters, "without_agent", False)
        await running(pool)


async def test_what_a_source_raises_is_on_the_run(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeClusters, "trouble", "no money for http://me:s3cret@bank/")
    async with pool.working():
        run_id = await pool.start("adds")
        said = r"^ClusterSourceFailed: The source 'fakes' \(acme-clusters 1.2.3\) .*no money"
        await ends(pool, run_id, StateType.CRASHED, said)
        assert "s3cret" not in (await pool.read(run_id)).model_dump_json()


async def orphan(pool_id: UUID) -> str:
    """Make a cluster for a run that Prefect does not have."""
    name = f"ray-{uuid4().hex}-0123456789ab"
    asked = AskedCluster(name, FakeFields(region="north"), uuid4(), str(pool_id))
    await FakeClusters().acquire(asked, print)
    ray, of, at = FakeClusters.rays[name]
    FakeClusters.rays[name] = (ray, of, at - timedelta(seconds=1000))
    return name


async def test_a_worker_deletes_what_the_chosen_one_does_not(pool: Pool) -> None:
    """That one has planned no run with these fields, and never asks the source for its clusters."""
    pool_id = (await pool.client.read_work_pool(pool.name)).id
    name = await orphan(pool_id)
    source, said = PluginClusters(ClusterEvents()), list[str]()
    view = PoolRuns(pool_id, FlowRuns(pool.client), lambda _: False)
    configuration = RayJobConfiguration(cluster_source=SOURCE)
    for _ in range(4):
        await source.sweep(view, configuration, said.append)
        assert name in FakeClusters.rays
    await source.sweep(view, configuration, said.append)
    assert said == [f"Deleting the cluster fakes:{name}: its flow run was deleted."]
    assert not FakeClusters.rays


async def test_a_source_that_is_missing_does_not_keep_others_from_their_sweep(pool: Pool) -> None:
    pool_id = (await pool.client.read_work_pool(pool.name)).id
    await orphan(pool_id)
    source, said = PluginClusters(ClusterEvents()), list[str]()
    run = RayJobConfiguration(cluster_source=SOURCE)
    await source.plan(run, f"prefect-{uuid4()}-0123456789ab")
    view = PoolRuns(pool_id, FlowRuns(pool.client), lambda _: True)
    of_pool = RayJobConfiguration(cluster_source={"type": "nowhere"})
    with pytest.raises(ClusterSourceMissing):
        await source.sweep(view, of_pool, said.append)
    assert not FakeClusters.rays


async def test_a_sweep_uses_the_keys_that_pool_and_runs_have_now(pool: Pool) -> None:
    """Two keys were one place, as JSON masks them, and the first one was used for ever."""

    def with_key(key: str) -> RayJobConfiguration:
        return RayJobConfiguration(cluster_source={**SOURCE, "key": key})

    source = PluginClusters(ClusterEvents())
    view = PoolRuns(uuid4(), FlowRuns(pool.client), lambda _: True)
    await source.plan(with_key("of a run"), f"prefect-{uuid4()}-0123456789ab")
    for key in ("old", "old", "new", "new"):
        FakeClusters.keys.clear()
        await source.sweep(view, with_key(key), print)
        assert sorted(FakeClusters.keys) == sorted([key, "of a run"])


async def test_the_sweep_deletes_what_no_run_needs(pool: Pool) -> None:
    record = await pool.client.read_work_pool(pool.name)
    template = record.base_job_template
    template["variables"]["properties"]["cluster_source"]["default"] = SOURCE
    await pool.client.request(
        "PATCH", f"/work_pools/{pool.name}", json={"base_job_template": template}
    )
    name = await orphan(record.id)
    said: list[str] = []
    record = await pool.client.read_work_pool(pool.name)
    with pytest.raises(InvalidConfiguration, match="--namespace is for KubeRay only"):
        await sweep_once(pool.client, record, ["other"], said.append)
    assert await sweep_once(pool.client, record, [], said.append) == []
    assert said == [f"Deleting the cluster fakes:{name}: its flow run was deleted."]
    assert not FakeClusters.rays


@dataclass(frozen=True)
class Later:
    """A pool whose runs have failed some seconds ago."""

    runs_now: PoolRuns
    seconds: float

    @property
    def pool_id(self) -> UUID:
        return self.runs_now.pool_id

    def is_mine(self, key: str, /) -> bool:
        return True

    async def runs(self, attempts: frozenset[RunAndAttempt]) -> dict[RunAndAttempt, RunOfCluster]:
        found = await self.runs_now.runs(attempts)
        failed = {"goes_on": False, "failed": True, "is_unfinished": False, "age": self.seconds}
        return {of: replace(run, **failed) for of, run in found.items()}

    async def in_use(self) -> frozenset[ClusterRef]:
        return frozenset()


async def test_a_sweep_keeps_a_cluster_for_as_long_as_its_run_says(pool: Pool) -> None:
    """It took the time of the pool, or of the first run with the same fields of the source."""
    async with pool.working():
        _, name, _ = await running(pool, **{"cluster_source.keep_failed_seconds": 3600})
    ray, of, at = FakeClusters.rays[name]
    FakeClusters.rays[name] = (ray, of, at - timedelta(seconds=5000))
    now = PoolRuns(UUID(of), FlowRuns(pool.client), lambda _: True)
    source, said = PluginClusters(ClusterEvents()), list[str]()  # of another worker
    configuration = RayJobConfiguration(cluster_source=SOURCE)
    await source.sweep(Later(now, 3500), configuration, said.append)
    assert (said, list(FakeClusters.rays)) == ([], [name])
    await source.sweep(Later(now, 3700), configuration, said.append)
    assert said == [f"Deleting the cluster fakes:{name}: its flow run has ended."]


@pytest.mark.parametrize(("region", "grade"), [("north", Grade.OK), ("south", Grade.FAILED)])
async def test_the_doctor_asks_the_source(pool: Pool, region: str, grade: Grade) -> None:
    given = {"cluster_source": {**SOURCE, "region": region}}
    checks = [check async for check in examine(pool.name, given, wait=5)]
    target, installed, *own = checks
    assert target.subject is CheckSubject.TARGET
    assert str(installed) == "The source 'fakes' is installed: acme-clusters 1.2.3."
    assert {check.subject for check in own} == {SourceSubject.OWN}
    assert own[-1].grade is grade
    assert region != "south" or "The quota of region south is 0." in str(own[-1])


async def test_the_suite_for_authors_passes_for_the_fake() -> None:
    await check_plugin(FakeClusters(), FakeFields(region="north"))


@pytest.mark.extra
@pytest.mark.ray
async def test_the_example_of_the_guide_runs_a_flow(
    prefect_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shell commands: `ray start`, and `kill`."""
    text = EXAMPLE.read_text()
    assert text.count("\n") <= 60
    assert text in GUIDE.read_text(), "the page shows what runs here"
    sources = {"shell": "shell_clusters:ShellClusters"}
    install(tmp_path / "site", monkeypatch, sources, {"shell_clusters": text})
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    folder = tmp_path / "clusters"
    source = {"type": "shell", "folder": str(folder), "start_timeout_seconds": 120}
    async with new_pool({"cluster_source": source}) as pool, pool.working():
        run_id = await pool.start("adds")
        run = await pool.wait_for(run_id, seconds=150)
        assert run.state is not None
        assert run.state.type == StateType.COMPLETED, run.state
        await pool.wait_for_log(run_id, "Deleting the cluster shell:ray-", seconds=40)
    from shell_clusters import head_in  # type: ignore[import-not-found]

    assert not [path for path in folder.glob("*/*") if head_in(path)]
    shutil.rmtree(folder)
