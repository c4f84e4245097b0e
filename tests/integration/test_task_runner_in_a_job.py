"""RayTaskRunner in a flow that our worker runs as a Ray Job."""

import time
from pathlib import Path

import psutil
import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.driver_kit import (
    begin,
    children_of,
    ended_job,
    ends,
    force,
    start,
    tasks_of,
    traces,
)
from tests.integration.harness import Pool
from tests.integration.processes import engine_of
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


@pytest.mark.extra
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


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("Cancelled by force", marks=pytest.mark.extra),
        pytest.param("Failed by hand", marks=pytest.mark.extra),
        # Until Prefect gives the slots of a dead process back: 60 s.
        pytest.param("Crashed by SIGKILL", marks=pytest.mark.extra),
    ],
)
async def test_what_a_dead_driver_leaves_running_is_settled(
    pool: Pool, tmp_path: Path, how: str
) -> None:
    """Task runs and subflow runs stayed Running for ever, and held the slots of their tags."""
    tag = f"slots-{tmp_path.name}"
    await pool.client.create_concurrency_limit(tag, 2)
    async with pool.working():
        run_id = await start(
            pool,
            "fans_out_and_ignores_everything",
            tmp_path,
            parameters={"tag": tag},
            entrypoint="fanning.py:fans_out_and_ignores_everything",
            job_variables={"stop_grace_seconds": 3},
        )
        await wait_until(
            lambda: len(traces(tmp_path, "pids")) == 2, timeout=90, description="both tasks begun"
        )
        limit = await pool.client.read_concurrency_limit_by_tag(tag)
        assert len(limit.active_slots) == 2
        kind = StateType.CRASHED
        if how == "Cancelled by force":
            kind = StateType.CANCELLED
            await pool.cancel(run_id)
        elif how == "Failed by hand":
            await force(pool, run_id, StateType.FAILED, "Failed")
        else:
            engine_of(tmp_path, "engine").kill()
        await ends(pool, run_id, StateType[how.split(maxsplit=1)[0].upper()])
        ended = time.monotonic()

        async def settled() -> bool:
            (child,) = await children_of(pool, run_id)
            tasks = await tasks_of(pool, run_id) + await tasks_of(pool, child.id)
            return {run.state_type for run in (child, *tasks)} == {kind}

        await wait_until(settled, timeout=60, description="all children settled")
        print(f"\n{how}: children settled {time.monotonic() - ended:.1f} s after their run")

        if how != "Crashed by SIGKILL":
            return

        async def free() -> bool:
            return not (await pool.client.read_concurrency_limit_by_tag(tag)).active_slots

        await wait_until(free, timeout=120, description="the slots of the tag to be free")
        print(f"slots free {time.monotonic() - ended:.1f} s after their run")


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
    assert not any("Ray's dashboard is at" in line for line in await pool.logs(run_id))


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
