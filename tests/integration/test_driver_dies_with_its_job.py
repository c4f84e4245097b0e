"""No process of a run outlives its job, however the job's own processes die."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.driver_kit import begin, ended_job, ends, start, traces
from tests.integration.harness import Pool, new_pool
from tests.integration.processes import (
    all_gone,
    engine_of,
    guard_of,
    job_supervisor_of,
    of_run,
    raylet_of,
    supervisor_of,
)
from tests.real_ray import real_ray

pytestmark = pytest.mark.ray

_GONE_SECONDS = 3
_EVERY_DEATH = {"SIGSEGV": ("signal SIGSEGV", -11), "7": ("exit code 7", 7)}


@pytest.mark.parametrize(
    ("victim_of", "category"),
    [
        (job_supervisor_of, "SupervisorDied"),
        pytest.param(guard_of, "KilledBySignal", marks=pytest.mark.extra),
        (supervisor_of, "KilledBySignal"),
    ],
)
async def test_nothing_is_left_of_a_run_without(
    pool: Pool,
    tmp_path: Path,
    victim_of: Callable[[psutil.Process], psutil.Process],
    category: str,
) -> None:
    """Neither the engine nor what the flow has started, in a session of its own or not."""
    async with pool.working():
        run_id = await begin(pool, "starts_programs", tmp_path)
        assert len(of_run(run_id)) == 5, "guard, supervisor, engine and two programs"
        victim_of(engine_of(tmp_path)).kill()
        await all_gone(run_id, within=_GONE_SECONDS)
        await ends(pool, run_id, StateType.CRASHED, f"{category}: ")


@pytest.mark.extra
async def test_nothing_is_left_of_a_run_without_its_raylet(
    prefect_settings: None, tmp_path: Path
) -> None:
    with real_ray() as ray:
        async with new_pool({"address": ray.address}) as pool, pool.working():
            run_id = await begin(pool, "starts_programs", tmp_path)
            raylet_of(ray.pid).kill()
            await all_gone(run_id, within=_GONE_SECONDS)


async def test_a_dead_engine_is_reported_in_words_and_its_hooks_run_once(
    pool: Pool, tmp_path: Path
) -> None:
    async with pool.working():
        runs = {
            how: await start(pool, "dies", tmp_path / how, parameters={"how": how})
            for how in _EVERY_DEATH
        }
        for how, (words, code) in _EVERY_DEATH.items():
            run = await ends(pool, runs[how], StateType.CRASHED, words)
            job = await ended_job(pool, runs[how])
            await all_gone(runs[how], within=_GONE_SECONDS)
            assert job.driver_exit_code == code
            assert run.state is not None
            assert traces(tmp_path / how, "on_crashed") == [run.state.message]
            state = (await pool.read(runs[how])).state
            assert state is not None
            assert state.id == run.state.id, "the worker has nothing to add"
