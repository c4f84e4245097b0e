"""A run that is cancelled stops where it is, runs its hooks once and leaves nothing behind."""

import statistics
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.driver_kit import begin, begun, children_of, ends, start, traces
from tests.integration.harness import FLOWS, Pool
from tests.integration.processes import all_gone

pytestmark = pytest.mark.ray

_GONE_SECONDS = 8
_GRACE_SECONDS = 4
_AT_ONCE_SECONDS = 5
_STOPPABLE = ("blocks_in_a_socket", "blocks_its_event_loop", "has_a_subflow", "called_ray_init")
_MORE = ("loops", "waits_for_a_program", "sleeps_async", "has_tasks_in_threads")
HOOKS = ("on_cancellation", "on_cancellation_async")


async def cancelled(pool: Pool, run_id: UUID) -> float:
    """Cancel a run; return the seconds from the request to Cancelled, by the server's clock."""
    await pool.cancel(run_id)
    await ends(pool, run_id, StateType.CANCELLED, seconds=50)
    history = await pool.client.read_flow_run_states(run_id)
    asked = min(s.timestamp for s in history if s.type == StateType.CANCELLING)
    done = next(s.timestamp for s in history if s.type == StateType.CANCELLED)
    return (done - asked).total_seconds()


@pytest.mark.parametrize(
    "flows", [_STOPPABLE, pytest.param(_MORE, marks=pytest.mark.extra)], ids=["hard", "easier"]
)
async def test_whatever_a_flow_does_it_is_cancelled_at_once(
    pool: Pool, tmp_path: Path, flows: tuple[str, ...]
) -> None:
    took: dict[str, float] = {}
    async with pool.working():
        runs = {name: await start(pool, name, tmp_path / name) for name in flows}
        for name, run_id in runs.items():
            await begun(pool, run_id, tmp_path / name)
        for name, run_id in runs.items():
            took[name] = await cancelled(pool, run_id)
            await all_gone(run_id, within=_GONE_SECONDS)
        children = [c for run_id in runs.values() for c in await children_of(pool, run_id)]
    print("\nrequest to Cancelled, s:", took)
    assert statistics.median(took.values()) < 1.5
    assert max(took.values()) < _AT_ONCE_SECONDS
    assert len(children) == flows.count("has_a_subflow")
    assert {child.state_type for child in children} <= {StateType.CANCELLED}
    for name in flows:
        assert [len(traces(tmp_path / name, hook)) for hook in HOOKS] == [1, 1], name


async def test_a_flow_that_ignores_everything_is_killed_after_the_grace(
    pool: Pool, tmp_path: Path
) -> None:
    async with pool.working():
        run_id = await begin(
            pool,
            "ignores_everything",
            tmp_path,
            job_variables={"stop_grace_seconds": _GRACE_SECONDS},
        )
        assert await cancelled(pool, run_id) < _GRACE_SECONDS + 5
        await all_gone(run_id, within=_GONE_SECONDS)
    assert traces(tmp_path, "ignored")
    assert [len(traces(tmp_path, hook)) for hook in HOOKS] == [1, 1]


async def test_cancelled_while_a_pull_step_runs(pool: Pool, tmp_path: Path) -> None:
    step = {
        "prefect.deployments.steps.run_shell_script": {
            "script": f"touch {tmp_path}/pids\nsleep 300"
        }
    }
    there = {"prefect.deployments.steps.set_working_directory": {"directory": str(FLOWS)}}
    async with pool.working():
        run_id = await begin(pool, "prints", tmp_path, pull_steps=[step, there])
        assert await cancelled(pool, run_id) < _AT_ONCE_SECONDS
        await all_gone(run_id, within=_GONE_SECONDS)
    assert not traces(tmp_path, "ran")


async def test_cancelled_while_the_module_of_the_flow_is_imported(
    pool: Pool, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nfrom pathlib import Path\nfrom prefect import flow\n"
        f"Path({str(tmp_path / 'pids')!r}).touch()\n"
        "time.sleep(300)\n"
        "@flow\ndef never(folder: str): pass\n"
    )
    there = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
    async with pool.working():
        run_id = await begin(
            pool, "never", tmp_path, entrypoint="slow.py:never", pull_steps=[there]
        )
        assert await cancelled(pool, run_id) < _AT_ONCE_SECONDS
        await all_gone(run_id, within=_GONE_SECONDS)
