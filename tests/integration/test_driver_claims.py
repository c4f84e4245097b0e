"""A driver runs user code only if its attempt is wanted, and only once: drivers started by hand."""

from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.states import InfrastructurePending, Pending, Scheduled

from prefect_ray_worker.shared.ids import INFRASTRUCTURE_RETRY, attempt_name
from tests.integration.driver_kit import (
    DRIVER_SECONDS,
    claimed,
    driver,
    force,
    output,
    present_attempt,
    traces,
)
from tests.integration.harness import Pool
from tests.waiting import wait_until


async def test_of_several_drivers_of_one_attempt_one_runs_the_flow(
    here: Pool, tmp_path: Path
) -> None:
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    said = [output(d) for d in [driver(run_id, attempt) for _ in range(2)]]
    assert len(traces(tmp_path, "ran")) == 1
    assert sum("Nothing to do" in text for text in said) == 1, said
    assert await here.state(run_id) == StateType.COMPLETED


async def test_a_driver_of_a_running_run_leaves_it_alone(here: Pool, tmp_path: Path) -> None:
    run_id, attempt = await claimed(here, "waits_for_permission", tmp_path)
    first = driver(run_id, attempt)
    await wait_until(
        lambda: traces(tmp_path, "ran"), timeout=DRIVER_SECONDS, description="the flow to run"
    )
    assert "Nothing to do: the flow run is Running" in output(driver(run_id, attempt))
    (tmp_path / "go").touch()
    output(first)
    assert "Nothing to do: the flow run is Completed" in output(driver(run_id, attempt))
    assert len(traces(tmp_path, "ran")) == 1


async def test_a_second_driver_runs_nothing_whatever_a_late_worker_says(
    here: Pool, tmp_path: Path
) -> None:
    """A worker that took the job for PENDING has put its own state over the first driver's."""
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    for name in ("Starting", "InfrastructurePending"):
        await here.client.set_flow_run_state(run_id, State(type=StateType.PENDING, name=name))
    assert "another driver of this attempt has begun" in output(driver(run_id, attempt))
    assert traces(tmp_path, "ran") == []


async def test_a_run_that_was_said_to_wait_is_claimed(here: Pool, tmp_path: Path) -> None:
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    await here.client.set_flow_run_state(run_id, InfrastructurePending())
    output(driver(run_id, attempt))
    assert len(traces(tmp_path, "ran")) == 1


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (StateType.CANCELLED, "Cancelled"),
        (StateType.SCHEDULED, "AwaitingRetry"),
        pytest.param(StateType.CRASHED, "Crashed", marks=pytest.mark.extra),
        pytest.param(StateType.PAUSED, "Suspended", marks=pytest.mark.extra),
    ],
)
async def test_a_driver_that_nobody_waits_for_runs_nothing(
    here: Pool, tmp_path: Path, state: StateType, name: str
) -> None:
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    await force(here, run_id, state, name)
    assert f"Nothing to do: the flow run is {name}" in output(driver(run_id, attempt))
    assert await here.state(run_id) == state
    assert traces(tmp_path, "ran") == []


async def test_a_driver_of_another_attempt_runs_nothing(here: Pool, tmp_path: Path) -> None:
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    await here.client.set_flow_run_state(run_id, Scheduled(), force=True)
    await here.client.set_flow_run_state(run_id, Pending())
    drivers = [driver(run_id, a) for a in (attempt, attempt_name(uuid4()))]
    assert all("a newer attempt" in output(d) for d in drivers)
    assert traces(tmp_path, "ran") == []
    output(driver(run_id, await present_attempt(here, run_id)))
    assert len(traces(tmp_path, "ran")) == 1


async def test_a_run_that_is_being_cancelled_is_cancelled_before_it_starts(
    here: Pool, tmp_path: Path
) -> None:
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    await force(here, run_id, StateType.CANCELLING, "Cancelling")
    output(driver(run_id, attempt))
    assert await here.state(run_id) == StateType.CANCELLED
    assert traces(tmp_path, "ran") == []


@pytest.mark.parametrize("waits", [True, pytest.param(False, marks=pytest.mark.extra)])
async def test_a_driver_whose_run_has_gone_on_ends_itself(
    here: Pool, tmp_path: Path, waits: bool
) -> None:
    """It was given up for dead: the run waits for another attempt, or is another attempt's."""
    run_id, attempt = await claimed(here, "loops", tmp_path)
    process = driver(run_id, attempt)
    await wait_until(
        lambda: traces(tmp_path, "pids"), timeout=DRIVER_SECONDS, description="the flow to run"
    )
    await force(here, run_id, StateType.SCHEDULED, INFRASTRUCTURE_RETRY)
    if not waits:
        await here.client.set_flow_run_state(run_id, Pending())
    expected = await here.state(run_id)
    assert "Another attempt at this flow run has begun" in output(process)
    assert await here.state(run_id) == expected, "it says nothing about a run that is not its own"
    assert traces(tmp_path, "on_crashed") == traces(tmp_path, "on_cancellation") == []
