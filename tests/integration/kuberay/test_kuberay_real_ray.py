"""The whole way with a real Ray: a cluster comes, runs a flow, and goes."""

from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from tests.fake_kubernetes import CRD, MISSING_CRD, RealHeads
from tests.integration.harness import set_timing
from tests.integration.kuberay.stage import new_kuberay_stage
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not CRD.exists(), reason=MISSING_CRD)]


async def test_a_flow_runs_on_a_cluster_of_its_own(
    prefect_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_kuberay_stage(tmp_path, monkeypatch, RealHeads()) as stage:
        async with stage.pool.working():
            run_id = await stage.start()
            await stage.ends(run_id, StateType.COMPLETED, seconds=200)
            await stage.is_gone(run_id)
        await stage.pool.wait_for_log(run_id, "Ray Job is SUCCEEDED")


@pytest.mark.extra
async def test_two_flows_share_a_cluster_that_goes_when_it_is_idle(
    prefect_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"scope": "shared", "idle_seconds": 3}
    async with new_kuberay_stage(tmp_path, monkeypatch, RealHeads()) as stage:
        set_timing(monkeypatch, sweep=1.0)
        async with stage.pool.working():
            runs = [await stage.start(kuberay=shared) for _ in range(2)]
            for run_id in runs:
                await stage.ends(run_id, StateType.COMPLETED, seconds=200)
            pids = {
                str((await stage.pool.read(r)).infrastructure_pid).split("/api")[0] for r in runs
            }
            assert len(pids) == 1
            await wait_until(
                lambda: not stage.kubernetes.clusters(), timeout=60, description="the idle end"
            )
