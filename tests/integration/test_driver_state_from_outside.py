"""A state that is set from outside ends the driver, and stands: drivers started by hand.

Observed before: 47 s after Failed was set by hand, flow and tasks worked on; the end of the flow
turned the state into Completed and ran on_completion.
"""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun, StateType

from tests.integration.driver_kit import (
    DRIVER_SECONDS,
    children_of,
    claimed,
    driver,
    force,
    output,
    tasks_of,
    traces,
)
from tests.integration.harness import Pool
from tests.integration.processes import all_gone
from tests.waiting import wait_until

HOOKS = ("on_cancellation", "on_crashed", "on_failure", "on_completion")
STATES = [
    (StateType.FAILED, "Failed", "on_failure"),
    (StateType.COMPLETED, "Completed", "on_completion"),
    (StateType.CRASHED, "Crashed", "on_crashed"),
    (StateType.CANCELLED, "Cancelled", "on_cancellation"),
]
AGAIN = (StateType.SCHEDULED, "Scheduled", "no hook")
_ENDS_SECONDS = 20


async def flow_runs(tmp_path: Path, trace: str = "pids") -> None:
    await wait_until(
        lambda: traces(tmp_path, trace), timeout=DRIVER_SECONDS, description="the flow to run"
    )


@pytest.mark.parametrize(
    "flow_name", ["has_children", pytest.param("has_an_async_child", marks=pytest.mark.extra)]
)
@pytest.mark.parametrize(
    ("state", "name", "hook"),
    [STATES[0], AGAIN, *(pytest.param(*state, marks=pytest.mark.extra) for state in STATES[1:])],
)
async def test_a_running_flow_ends_and_the_state_stays(
    here: Pool, tmp_path: Path, flow_name: str, state: StateType, name: str, hook: str
) -> None:
    run_id, attempt = await claimed(here, flow_name, tmp_path)
    process = driver(run_id, attempt)
    await flow_runs(tmp_path)
    await force(here, run_id, state, name)
    asked, set_ = time.monotonic(), (await here.read(run_id)).state
    assert set_ is not None
    await wait_until(
        lambda: process.poll() is not None, timeout=_ENDS_SECONDS, description="the driver to end"
    )
    print(f"\nended {time.monotonic() - asked:.1f} s after {name}")
    output(process)
    await all_gone(run_id, within=3)
    stands = (await here.read(run_id)).state
    assert stands is not None
    assert stands.id == set_.id
    (child,) = await children_of(here, run_id)
    expected = StateType.CANCELLED if state == StateType.CANCELLED else StateType.CRASHED
    assert child.state_type == expected
    ran = {each: len(traces(tmp_path, each)) for each in HOOKS}
    if expected == StateType.CRASHED:
        ran["on_crashed"] -= 1  # the child's own
    assert ran == {each: int(each == hook) for each in HOOKS}


@pytest.mark.parametrize(
    ("state", "name", "hook"),
    [STATES[3], *(pytest.param(*s, marks=pytest.mark.extra) for s in (*STATES[:3], AGAIN))],
)
async def test_the_end_of_a_flow_never_overwrites_it(
    here: Pool, tmp_path: Path, state: StateType, name: str, hook: str
) -> None:
    """The flow returns in the moment after, before anything has told the driver."""
    run_id, attempt = await claimed(here, "ends_when_permitted", tmp_path)
    process = driver(run_id, attempt)
    await flow_runs(tmp_path, "ran")
    await force(here, run_id, state, name)
    (tmp_path / "go").touch()
    set_ = (await here.read(run_id)).state
    output(process)
    stands = (await here.read(run_id)).state
    assert set_ is not None
    assert stands is not None
    assert stands.id == set_.id
    assert not any(traces(tmp_path, each) for each in HOOKS if each != hook)
    assert len(traces(tmp_path, hook)) <= 1


@pytest.mark.parametrize("before_the_try", [2.0, pytest.param(0.02, marks=pytest.mark.extra)])
async def test_it_stands_before_the_next_try_of_a_flow(
    here: Pool, tmp_path: Path, before_the_try: float
) -> None:
    """Observed before: the next try replaced it with Running, because Prefect waits for it."""
    run_id, attempt = await claimed(here, "retries_soon", tmp_path)
    process = driver(run_id, attempt)

    async def waits() -> FlowRun | None:
        run = await here.read(run_id)
        return run if run.state is not None and run.state.name == "AwaitingRetry" else None

    run = await wait_until(waits, timeout=DRIVER_SECONDS, description="the flow to wait")
    assert run is not None
    assert run.state is not None
    due = run.state.state_details.scheduled_time
    assert due is not None
    await asyncio.sleep((due - datetime.now(UTC)).total_seconds() - before_the_try)
    await force(here, run_id, StateType.FAILED, "Failed")
    set_ = (await here.read(run_id)).state
    output(process)
    stands = (await here.read(run_id)).state
    assert set_ is not None
    assert stands is not None
    assert stands.id == set_.id
    states = await here.client.read_flow_run_states(run_id)
    begun = [s for s in states if s.is_running() and s.timestamp < set_.timestamp]
    # On a busy machine the next try may have begun within the 20 ms.
    assert len(begun) <= (1 if before_the_try > 1 else 2)
    assert 1 <= len(traces(tmp_path, "ran")) <= len(begun)
    assert [traces(tmp_path, each) for each in HOOKS if each != "on_failure"] == [[], [], []]


async def test_the_flows_own_end_is_no_state_from_outside(here: Pool, tmp_path: Path) -> None:
    """Its hooks run to their end, however long they take."""
    run_id, attempt = await claimed(here, "has_a_slow_hook", tmp_path)
    output(driver(run_id, attempt))
    assert traces(tmp_path, "on_completion") == ["begun", "ended"]
    assert await here.state(run_id) == StateType.COMPLETED


async def test_children_of_a_flow_that_is_stopped_outside_prefect_are_crashed(
    here: Pool, tmp_path: Path
) -> None:
    """Observed before: subflows and their tasks stayed Running for ever."""
    for name in ("has_children", "has_an_async_child"):
        folder = tmp_path / name
        folder.mkdir()
        run_id, attempt = await claimed(here, name, folder)
        process = driver(run_id, attempt)
        await flow_runs(folder)
        process.terminate()
        process.communicate(timeout=DRIVER_SECONDS)
        run = await here.read(run_id)
        (child,) = await children_of(here, run_id)
        for each in (run, child):
            assert each.state is not None
            assert each.state.type == StateType.CRASHED, name
            assert (each.state.message or "").startswith("StoppedOutside: "), name
        states = {run.state_type for run in await tasks_of(here, child.id)}
        assert states <= {StateType.CRASHED, StateType.CANCELLED}
        assert len(traces(folder, "on_crashed")) == 2, "its own, and its child's"
        assert traces(folder, "on_cancellation") == []
