"""Runs share clusters, and idle ones go: whoever acts at the same moment, and whoever dies when."""

import math
import random
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from prefect_ray_worker.clusters.kuberay.manifest import START_TIMEOUT
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.errors import ClusterFailed
from tests.fake_kubernetes import NO_NODE, FakeHeads, FakeKubernetes, Fault, Kind, Script
from tests.fake_ray import FakeRay
from tests.unit.clusters.kuberay.shared_stage import (
    QUICK,
    Run,
    SharedStage,
    Worker,
    a_stage,
    age_of,
    ended,
    goes,
    name_of,
)
from tests.waiting import wait_until


@pytest.fixture
def stage(kubernetes: FakeKubernetes) -> SharedStage:
    return a_stage(kubernetes)


@pytest.fixture
async def worker(stage: SharedStage) -> AsyncIterator[Worker]:
    async with stage.worker() as one:
        yield one


def ray_of(stage: SharedStage, cluster: Cluster) -> FakeRay:
    assert isinstance(stage.kubernetes.heads, FakeHeads)
    return stage.kubernetes.heads.by_cluster[name_of(cluster)]


async def test_two_workers_and_a_burst_make_exactly_one_cluster(stage: SharedStage) -> None:
    found: list[Cluster] = []

    async def provide(worker: Worker, run: Run) -> None:
        found.append(await worker.provide(run))

    async with stage.worker() as one, stage.worker() as two, anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(provide, (one, two)[number % 2], stage.run())
    assert len({cluster.ref for cluster in found}) == 1
    assert len(found) == 40
    assert len(stage.kubernetes.clusters()) == 1
    stamps = stage.kubernetes.requests.number_of("PATCH", "/rayclusters/")
    assert stamps < 20, "one stamp serves all runs that came before it"


async def test_a_burst_after_a_cluster_that_goes_makes_exactly_one(stage: SharedStage) -> None:
    async with stage.worker() as one, stage.worker() as two:
        first = stage.run()
        old = await one.provide(first)
        first.goes_on = False
        stage.kubernetes.store.collect_seconds = 1.0
        await anyio.sleep(1)
        await one.sweep()
        assert stage.kubernetes.clusters() == [name_of(old)], "it is going, and not yet gone"
        found: list[Cluster] = []

        async def provide(worker: Worker, run: Run) -> None:
            found.append(await worker.provide(run))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(provide, (one, two)[number % 2], stage.run())
        assert {name_of(cluster) for cluster in found} == {name_of(old)[:-1] + "2"}


@pytest.mark.extra
async def test_in_sixty_forced_races_a_join_and_a_sweep_never_both_succeed(
    stage: SharedStage,
) -> None:
    chance = random.Random(16)
    joined = deleted = 0
    async with stage.worker() as joins, stage.worker() as sweeps:
        cluster = await joins.provide(ended(stage.run()))
        took = 0.1

        async def sweep() -> None:
            nonlocal took
            began = anyio.current_time()
            await sweeps.sweep()
            took = anyio.current_time() - began

        for _ in range(60):
            age_of(stage, name_of(cluster))
            run = stage.run()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sweep)
                await anyio.sleep(chance.uniform(0, 2 * took))
                got = await joins.provide(run)
            now = stage.kubernetes.store.get("rayclusters", "ray", name_of(got))
            assert now["metadata"]["uid"] == got.ref.uid
            assert "deletionTimestamp" not in now["metadata"], "joined, and deleted all the same"
            assert "prefect-ray-worker/closing" not in now["metadata"]["annotations"]
            joined += got.ref == cluster.ref
            deleted += got.ref != cluster.ref
            run.goes_on, cluster = False, got
    assert joined + deleted == 60
    assert joined > 5, f"{joined} joined, {deleted} deleted"
    assert deleted > 5, f"{joined} joined, {deleted} deleted"


async def test_a_cluster_is_not_idle_while_anything_uses_it(
    stage: SharedStage, worker: Worker
) -> None:
    run = stage.run()
    cluster = await worker.provide(run)
    name, ray = name_of(cluster), ray_of(stage, cluster)

    async def stays(why: str) -> None:
        age_of(stage, name)
        await worker.sweep()
        assert stage.kubernetes.clusters() == [name], why
        document = stage.kubernetes.store.get("rayclusters", "ray", name)
        assert "prefect-ray-worker/closing" not in document["metadata"]["annotations"], why

    await stays("a run names it")
    run.goes_on = False
    job = ray.add_job("a-users-own")
    await stays("a job runs")
    job.set("SUCCEEDED", driver_exit_code=0)
    await stays("a job ended just now")
    ray.jobs.clear()
    driver = ray.add_driver("02000000")
    await stays("a Ray Client is there")
    ray.drivers.clear()
    ray.other_activities = {"notebook": {"is_active": "ACTIVE", "reason": "two kernels"}}
    await stays("a hook says so")
    assert driver
    ray.other_activities = {}
    age_of(stage, name)
    await goes(stage, worker, name)
    assert "it has been idle for" in stage.said[-1]


async def test_a_silent_dashboard_is_not_idle(stage: SharedStage, worker: Worker) -> None:
    """One look without an answer deleted a cluster whose last run was long, with others' jobs."""
    cluster = await worker.provide(ended(stage.run()))
    name, ray = name_of(cluster), ray_of(stage, cluster)
    age_of(stage, name)
    document = stage.kubernetes.store.find("rayclusters", "ray", name)
    assert document is not None
    document["metadata"]["annotations"][START_TIMEOUT] = "0"  # a silence counts after a second
    await ray.stop_listening()

    async def stays(why: str) -> None:
        await worker.sweep()
        assert stage.said == [], why

    await stays("it has just fallen silent")
    await anyio.sleep(1.1)
    await ray.listen_again()
    ray.add_job("a-users-own")
    await stays("a job runs")
    await ray.stop_listening()
    await stays("it has answered in between")
    await anyio.sleep(1.1)
    named = stage.run()
    named.ref = cluster.ref
    await stays("a run names it")
    named.goes_on = False
    await stays("a run has just named it")
    async with stage.worker() as new:
        await new.sweep()
        assert stage.said == [], "a new worker knows nothing of the silence"
    await goes(stage, worker, name)
    assert "its dashboard has not answered for" in stage.said[-1]


async def test_while_prefect_is_away_only_the_longest_life_ends_a_cluster(
    kubernetes: FakeKubernetes,
) -> None:
    stage = a_stage(kubernetes, max_lifetime_seconds=60)
    async with stage.worker() as worker:
        cluster = await worker.provide(ended(stage.run()))
        await anyio.sleep(1.1)
        with pytest.raises(ConnectionError):
            await worker.sweep(prefect_is_away=True)
        assert stage.kubernetes.clusters() == [name_of(cluster)]
        age_of(stage, name_of(cluster))
        await worker.sweep(prefect_is_away=True)
        assert "older than 60 s (max_lifetime_seconds)" in stage.said[-1]


async def test_a_sweep_deletes_what_a_dead_one_has_closed(
    stage: SharedStage, worker: Worker
) -> None:
    """The next sweep deletes it, although a run names it: nothing can join it any more."""
    name = name_of(await worker.provide(stage.run()))
    stage.kubernetes.store.patch(
        "rayclusters",
        "ray",
        name,
        {"metadata": {"annotations": {"prefect-ray-worker/closing": "idle"}}},
    )
    later = await worker.provide(stage.run())
    assert name_of(later) == name[:-1] + "2"
    await goes(stage, worker, name)


async def test_a_run_waits_in_line_for_the_quota_and_then_joins(stage: SharedStage) -> None:
    quota = stage.kubernetes.limit(0)
    runs = [stage.run() for _ in range(3)]
    found: list[Cluster] = []
    async with stage.worker() as worker, anyio.create_task_group() as tasks:

        async def provide(run: Run) -> None:
            found.append(await worker.provide(run))

        for run in runs:
            tasks.start_soon(provide, run)
        await wait_until(
            lambda: all(any("quota" in line for line in run.said) for run in runs),
            timeout=10,
            description="all runs in line",
        )
        quota.hard = 1
    assert len({cluster.ref for cluster in found}) == 1


async def test_a_run_joins_no_cluster_whose_head_is_lost_for_good(
    stage: SharedStage, worker: Worker
) -> None:
    cluster = await worker.provide(ended(stage.run()))
    name = name_of(cluster)

    def told(condition: str, status: str) -> bool:
        document = stage.kubernetes.store.get("rayclusters", "ray", name)
        conditions = document.get("status", {}).get("conditions", [])
        return any(c["type"] == condition and c["status"] == status for c in conditions)

    # A head can take jobs before KubeRay has noticed. If it died then, it would count as one that
    # never started, and the run would fail.
    await wait_until(
        lambda: told("RayClusterProvisioned", "True"), timeout=10, description="KubeRay's word"
    )
    stage.kubernetes.scripts[name] = Script(crashes=math.inf)
    await stage.kubernetes.kubelet.kill_head("ray", name)

    def is_down() -> bool:
        return told("HeadPodReady", "False")

    await wait_until(is_down, timeout=10, description="a head that is down")
    await anyio.sleep(QUICK.poll)  # for so long a look serves all runs, that of the first one too
    again = await worker.provide(stage.run())
    assert name_of(again) == name[:-1] + "2"
    assert name in stage.kubernetes.clusters(), "the sweep decides about it, not a run"


async def test_a_deleted_cluster_is_gone_and_the_next_run_makes_another(
    stage: SharedStage, worker: Worker
) -> None:
    run = stage.run()
    cluster = await worker.provide(run)
    stage.kubernetes.store.delete("rayclusters", "ray", name_of(cluster))
    assert await worker.source.why_gone(cluster.ref) is not None
    with pytest.raises(ClusterFailed, match=r"^ClusterDeleted: "):
        await worker.provide(run)  # its job may have been there
    again = await worker.provide(stage.run())
    assert again.ref != cluster.ref


async def test_a_record_that_names_the_cluster_of_another_pool_is_not_followed(
    stage: SharedStage, worker: Worker
) -> None:
    cluster = await worker.provide(stage.run())
    name = name_of(cluster)
    document = stage.kubernetes.store.find("rayclusters", "ray", name)
    assert document is not None
    document["metadata"]["labels"]["prefect.io/work-pool-id"] = "somebody else's"
    run = stage.run()
    run.ref = cluster.ref
    plan = await worker.source.plan(stage.configuration(), run.job_id, run.ref)
    assert plan is not None
    assert await worker.source.look(plan) is None
    with pytest.raises(ClusterFailed, match="not made for this work pool"):
        await worker.provide(run)


REQUESTS = [
    ("GET", r"/rayclusters$"),
    ("POST", r"/rayclusters$"),
    ("PATCH", r"/rayclusters/"),
    ("GET", r"/pods$"),
    ("GET", r"/secrets/"),
    ("GET", r"/proxy/api/version$"),
]


@pytest.mark.parametrize("acts", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("method", "path"), REQUESTS, ids=[f"{m} {p}" for m, p in REQUESTS])
async def test_a_worker_that_dies_at_a_request_leaves_one_cluster_to_its_heir(
    stage: SharedStage, method: str, path: str, *, acts: bool
) -> None:
    """It dies before the request has its effect, or after it and before it knows the answer."""
    kind = Kind.ACT_THEN_DROP if acts else Kind.HANG
    fault = stage.kubernetes.faults.add(Fault(method, path, kind=kind, times=None))
    run = stage.run()
    async with stage.worker() as victim, anyio.create_task_group() as tasks:
        tasks.start_soon(victim.provide, run)
        await wait_until(lambda: fault.hits > 0, timeout=10, description="the fatal request")
        await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
    stage.kubernetes.faults.clear()
    named, made = run.ref, stage.kubernetes.clusters()
    assert len(made) <= 1
    assert not made or (named is not None and named.name.endswith(made[0])), "owned before made"
    async with stage.worker() as heir:
        cluster = await heir.provide(run, head={"cpus": 2} if made else None)
        assert stage.kubernetes.clusters() == (made or [name_of(cluster)])
        assert await heir.provide(run) == cluster, "and once it may have the job, no other"
        run.goes_on = False
        age_of(stage, name_of(cluster))
        await goes(stage, heir, name_of(cluster))


async def test_a_worker_that_dies_while_it_waits_leaves_the_cluster_to_its_heir(
    stage: SharedStage,
) -> None:
    stage.kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    run = stage.run()
    async with stage.worker() as victim, anyio.create_task_group() as tasks:
        tasks.start_soon(victim.provide, run)
        await wait_until(
            lambda: any(NO_NODE[:20] in line for line in run.said),
            timeout=10,
            description="what it waits for",
        )
        tasks.cancel_scope.cancel()
    (name,) = stage.kubernetes.clusters()
    waits.unschedulable = None
    async with stage.worker() as heir:
        assert name_of(await heir.provide(run)) == name


async def test_a_changed_specification_does_not_take_a_run_from_the_cluster_of_its_record(
    stage: SharedStage, worker: Worker
) -> None:
    run = stage.run()
    cluster = await worker.provide(run)
    changed: dict[str, Any] = {"idle_seconds": 99}
    assert await worker.provide(run, **changed) == cluster
    other = await worker.provide(stage.run(), **changed)
    assert other.ref != cluster.ref
