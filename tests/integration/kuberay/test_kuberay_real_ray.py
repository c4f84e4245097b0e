"""The whole way with a real Ray: a cluster comes, runs a flow, and goes."""

from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from tests.fake_kubernetes import CRD, MISSING_CRD, RealHeads
from tests.integration.kuberay.stage import new_kuberay_stage

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
