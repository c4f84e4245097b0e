"""RayTaskRunner in a flow that our worker runs as a Ray Job."""

from pathlib import Path

import psutil
import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.driver_kit import begin, ended_job, ends, start, traces
from tests.integration.harness import Pool
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


async def test_a_flow_fans_out_over_the_cluster_of_its_job(pool: Pool, tmp_path: Path) -> None:
    async with pool.working():
        run_id = await start(pool, "fans_out", tmp_path, entrypoint="fanning.py:fans_out")
        await ends(pool, run_id, StateType.COMPLETED, seconds=120)
    assert traces(tmp_path, "total") == ["285"]
    said = await pool.logs(run_id)
    assert {f"squaring {i}" for i in range(10)} <= set(said)


async def test_cancelling_the_flow_ends_its_tasks(pool: Pool, tmp_path: Path) -> None:
    async with pool.working():
        run_id = await begin(
            pool, "fans_out_for_long", tmp_path, entrypoint="fanning.py:fans_out_for_long"
        )
        await wait_until(
            lambda: len(traces(tmp_path, "pids")) == 2, timeout=60, description="both tasks begun"
        )
        pids = [int(pid) for pid in traces(tmp_path, "pids")]
        await pool.cancel(run_id)
        await ends(pool, run_id, StateType.CANCELLED, seconds=30)
        await wait_until(
            lambda: not any(psutil.pid_exists(pid) for pid in pids),
            timeout=15,
            description="no process of a task left",
        )


async def test_tasks_of_a_suspended_flow_run_once(pool: Pool, tmp_path: Path) -> None:
    """They are not cancelled with its first process, and its second takes their results."""
    async with pool.working():
        entrypoint = "fanning.py:fans_out_and_suspends_itself"
        run_id = await start(pool, "fans_out_and_suspends_itself", tmp_path, entrypoint=entrypoint)
        await pool.wait_for(run_id, StateType.PAUSED, seconds=60)
        await ended_job(pool, run_id)
        await pool.client.resume_flow_run(run_id)
        await ends(pool, run_id, StateType.COMPLETED)
    assert traces(tmp_path, "total") == ["3"]
    assert sorted(traces(tmp_path, "bodies")) == ["0", "1", "2"]


async def test_a_flow_may_go_on_importing_prefect_ray(pool: Pool, tmp_path: Path) -> None:
    pytest.importorskip("prefect_ray", reason="it would register itself with Prefect everywhere")
    async with pool.working():
        run_id = await start(
            pool,
            "fans_out_with_theirs",
            tmp_path,
            entrypoint="with_prefect_ray.py:fans_out_with_theirs",
        )
        await ends(pool, run_id, StateType.COMPLETED, seconds=150)
    assert traces(tmp_path, "total") == ["14"]
