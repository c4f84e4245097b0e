"""Shared clusters that do not start, or only in part: who fails, who goes on, and what is left."""

import math
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from prefect_ray_worker.errors import ClusterFailed
from tests.fake_kubernetes import NO_NODE, FakeHeads, FakeKubernetes, Fault, Kind, Script
from tests.unit.clusters.kuberay.shared_stage import (
    QUICK,
    Run,
    Worker,
    a_stage,
    age_of,
    ended,
    goes,
    name_of,
)
from tests.waiting import wait_until

WORKERS = [{"name": "cpu", "cpus": 1, "memory": "1GiB", "min": 1, "max": 1}]


async def test_a_cluster_that_does_not_start_fails_all_its_waiters_with_one_reason(
    kubernetes: FakeKubernetes,
) -> None:
    """None of them deletes the next one, which starts."""
    stage = a_stage(kubernetes)
    stage.kubernetes.scripts[r".*-1"] = Script(image="manifest unknown")
    failures: list[str] = []

    async def fails(worker: Worker, run: Run) -> None:
        with pytest.raises(ClusterFailed) as raised:
            await worker.provide(run)
        failures.append(str(raised.value))

    async with stage.worker() as one, stage.worker() as two:
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(fails, (one, two)[number % 2], stage.run())
        assert len(set(failures)) == 1
        assert "ClusterImage: " in failures[0]
        assert "manifest unknown" in failures[0]
        for run in stage.known:
            run.goes_on = False
        # The next one has the same name if the first is gone already; else nobody joins the first.
        left = [d["metadata"]["uid"] for d in stage.kubernetes.store.all("rayclusters", "ray")]
        stage.kubernetes.scripts.clear()
        healthy = await one.provide(stage.run())
        assert healthy.ref.uid
        assert healthy.ref.uid not in left
        assert name_of(healthy) in stage.kubernetes.clusters()


async def test_a_run_that_waits_for_workers_in_vain_leaves_the_cluster_to_the_others(
    kubernetes: FakeKubernetes,
) -> None:
    """It deleted the cluster under the runs that need the head alone."""
    stage = a_stage(kubernetes, workers=WORKERS, start_timeout_seconds=1)
    kubernetes.scripts.default = Script(unschedulable=NO_NODE, spares_head=True)
    async with stage.worker() as worker:
        cluster = await worker.provide(stage.run())
        age_of(stage, name_of(cluster))
        waits = stage.run()
        with pytest.raises(ClusterFailed, match="3 Insufficient cpu"):
            await worker.provide(waits, ready_when="all")
        assert waits.said, "a start timeout of its own: the cluster is old"
        assert not any(" within " in line for line in waits.said), "that was another run's time"
        assert (await worker.provide(stage.run())).ref == cluster.ref


async def test_a_cluster_whose_workers_cannot_start_is_replaced_and_its_head_stays_in_use(
    kubernetes: FakeKubernetes,
) -> None:
    """Runs that came often enough all failed in it, as it never was idle."""
    stage = a_stage(kubernetes, workers=WORKERS)
    kubernetes.scripts[r".*-1"] = Script(image="manifest unknown", spares_head=True)
    async with stage.worker() as worker:
        worker.source.timing = replace(QUICK, image=1.5)  # longer than a look on a busy machine
        uses_head = stage.run()
        first = name_of(await worker.provide(uses_head))
        with pytest.raises(ClusterFailed, match="manifest unknown"):
            await worker.provide(ended(stage.run()), ready_when="all")
        second = name_of(await worker.provide(stage.run(), ready_when="all"))
        assert second == first[:-1] + "2"
        await worker.sweep()
        assert kubernetes.clusters() == [first, second], "a run uses its head"
        async with stage.worker() as heir:
            assert name_of(await heir.provide(uses_head)) == first, "it can have its job there"
            with pytest.raises(ClusterFailed, match="manifest unknown"):
                await heir.provide(uses_head, ready_when="all")
        uses_head.goes_on = False
        await goes(stage, worker, first)
        assert "it did not start, and no run uses it" in stage.said[-1]


async def test_a_run_that_joins_a_cluster_with_a_fault_of_before_gets_the_next_one(
    kubernetes: FakeKubernetes,
) -> None:
    stage = a_stage(kubernetes, workers=WORKERS)
    kubernetes.scripts[r".*-1"] = Script(image="manifest unknown", spares_head=True)
    async with stage.worker() as worker:
        first = name_of(await worker.provide(stage.run()))
        with anyio.move_on_after(QUICK.image / 2):
            await worker.provide(stage.run(), ready_when="all")
        await anyio.sleep(QUICK.image)
        second = name_of(await worker.provide(stage.run(), ready_when="all"))
        assert second == first[:-1] + "2"


@pytest.mark.parametrize("has_workers", [False, True], ids=["all ready", "workers missing"])
async def test_a_cluster_whose_ready_head_takes_no_jobs_is_replaced(
    kubernetes: FakeKubernetes, *, has_workers: bool
) -> None:
    """Each run waited for it in vain."""
    assert isinstance(kubernetes.heads, FakeHeads)
    stage = a_stage(kubernetes, start_timeout_seconds=3, workers=WORKERS if has_workers else [])
    kubernetes.scripts.default = Script(unschedulable=NO_NODE, spares_head=True)
    async with stage.worker() as worker:
        uses_head = stage.run()
        first = name_of(await worker.provide(uses_head))
        kubernetes.heads.by_cluster[first].has_agent = False
        await anyio.sleep(QUICK.poll)  # for so long a look serves all runs
        with pytest.raises(ClusterFailed, match=r"did not take jobs within 3 s .*its head is up"):
            await worker.provide(ended(stage.run()))
        await worker.sweep()
        assert kubernetes.clusters() == [first], "a run uses its head"
        uses_head.goes_on = False
        await goes(stage, worker, first)
        assert "it did not start, and no run uses it" in stage.said[-1]


async def test_the_last_lines_of_a_head_that_crashes_fit_into_an_annotation(
    kubernetes: FakeKubernetes,
) -> None:
    """Kubernetes refused to close the cluster, and its runs waited for ever."""
    stage = a_stage(kubernetes)
    words = "\n".join(f"{number} {'ü' * 8000} its end" for number in range(50))
    kubernetes.scripts.default = Script(crashes=math.inf, last_words=words)
    async with stage.worker() as worker:
        with pytest.raises(ClusterFailed, match="HeadCrashLoop") as raised:
            await worker.provide(stage.run())
    assert str(raised.value).endswith(" its end")
    assert len(str(raised.value).encode()) < 64 * 1024


@pytest.mark.parametrize("status", [422, 503])
async def test_a_run_does_not_wait_for_a_cluster_that_cannot_be_closed(
    kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """A run waited without any limit while a webhook refused the annotation."""
    stage = a_stage(kubernetes, start_timeout_seconds=1)
    kubernetes.scripts.default = Script(image="manifest unknown")
    run = stage.run()

    def refuse(_: str) -> None:  # called once the run has joined
        kubernetes.faults.add(Fault("PATCH", "/rayclusters/", Kind.STATUS, None, status=status))

    monkeypatch.setattr(run, "waits", refuse)
    async with stage.worker() as worker:
        with anyio.fail_after(10), pytest.raises(ClusterFailed, match="manifest unknown"):
            await worker.provide(run)
    assert kubernetes.clusters(), "it may have other runs"


@pytest.mark.parametrize("scope", ["shared", "run"])
async def test_a_plugin_that_fails_for_a_while_ends_no_run_that_waits(
    kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scope: str
) -> None:
    """One failure of the plugin was final for all runs that waited, and their clusters went."""
    token, plugin = tmp_path / "token", tmp_path / "plugin"
    token.write_text("worker-token")
    plugin.write_text(f'#!/bin/sh\nprintf \'{{"status": {{"token": "%s"}}}}\' "$(cat {token})"\n')
    plugin.chmod(0o700)
    version = "client.authentication.k8s.io/v1beta1"
    user = {"exec": {"apiVersion": version, "command": str(plugin)}}
    monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(tmp_path, user=user)))
    stage = a_stage(kubernetes)
    changes = {"kubeconfig": None, "scope": scope}
    if scope == "run":
        changes["idle_seconds"] = None
    stage.asked = stage.asked.model_copy(update=changes)
    kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    run = stage.run()

    def is_told(text: str) -> bool:
        return any(text in line for line in run.said)

    async with stage.worker() as worker, anyio.create_task_group() as tasks:
        tasks.start_soon(worker.provide, run)
        await wait_until(lambda: is_told(NO_NODE[:20]), description="a run that waits")
        plugin.chmod(0)
        kubernetes.users = {"next": kubernetes.worker}
        await wait_until(lambda: is_told("cannot be read now"), description="the plugin's failure")
        token.write_text("next")
        plugin.chmod(0o700)
        waits.unschedulable = None
    assert len(kubernetes.clusters()) == 1
