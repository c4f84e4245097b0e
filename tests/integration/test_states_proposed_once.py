"""A state whose grant is lost on the way back is not given a second time, on a real server.

A second Crashed was seen to set off an automation twice.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.states import Cancelling, Crashed, Pending, Running, Scheduled

from prefect_ray_worker.prefect_api.flow_runs import FlowRuns


@flow
def some_flow() -> None: ...


@pytest.fixture
async def client(prefect_settings: None) -> AsyncIterator[PrefectClient]:
    async with get_client() as opened:
        yield opened


async def new_run(client: PrefectClient, *states: Any) -> UUID:
    run_id = (await client.create_flow_run(some_flow)).id
    for state in (Pending(), *states):
        await client.set_flow_run_state(run_id, state)
    return run_id


async def names(client: PrefectClient, run_id: UUID) -> list[str | None]:
    states = await client.read_flow_run_states(run_id)
    return [state.name for state in sorted(states, key=lambda state: state.timestamp)]


@asynccontextmanager
async def losing(
    client: PrefectClient,
    monkeypatch: pytest.MonkeyPatch,
    *,
    granted: bool,
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> AsyncIterator[None]:
    """Lose the answer to the next proposal, or the proposal itself."""
    give = client.set_flow_run_state

    async def lose(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(client, "set_flow_run_state", give)
        if granted:
            await give(*args, **kwargs)
        if meanwhile is not None:
            await meanwhile()
        raise httpx.ReadError("the answer was lost")

    monkeypatch.setattr(client, "set_flow_run_state", lose)
    yield


@pytest.mark.parametrize("granted", [True, False])
async def test_crash_is_one_state_although_its_answer_was_lost(
    client: PrefectClient, monkeypatch: pytest.MonkeyPatch, granted: bool
) -> None:
    run_id = await new_run(client, Running())
    async with losing(client, monkeypatch, granted=granted):
        assert await FlowRuns(client, first_wait=0.05).crash(run_id, "its node died")
    assert (await names(client, run_id))[-2:] == ["Running", "Crashed"]


@pytest.mark.parametrize("granted", [True, False])
async def test_better_message_of_a_crash_is_one_state(
    client: PrefectClient, monkeypatch: pytest.MonkeyPatch, granted: bool
) -> None:
    run_id = await new_run(client, Running(), Crashed(message="the engine's own words"))
    runs = FlowRuns(client, first_wait=0.05)
    async with losing(client, monkeypatch, granted=granted):
        assert await runs.crash(run_id, "it ran for too long", rename=True)
    assert (await names(client, run_id))[-3:] == ["Running", "Crashed", "Crashed"]


@pytest.mark.parametrize("granted", [True, False])
async def test_cancelled_is_one_state_although_its_answer_was_lost(
    client: PrefectClient, monkeypatch: pytest.MonkeyPatch, granted: bool
) -> None:
    run_id = await new_run(client, Running(), Cancelling())
    async with losing(client, monkeypatch, granted=granted):
        assert await FlowRuns(client, first_wait=0.05).cancelled(run_id, "stopped")
    assert (await names(client, run_id))[-2:] == ["Cancelling", "Cancelled"]


@pytest.mark.parametrize("granted", [True, False])
async def test_attempt_that_has_begun_meanwhile_is_left_alone(
    client: PrefectClient, monkeypatch: pytest.MonkeyPatch, granted: bool
) -> None:
    run_id = await new_run(client, Running())

    async def claim_again() -> None:
        for state in (Scheduled(), Pending(), Running()):
            await client.set_flow_run_state(run_id, state, force=True)

    async with losing(client, monkeypatch, granted=granted, meanwhile=claim_again):
        assert await FlowRuns(client, first_wait=0.05).crash(run_id, "its node died") == granted
    assert (await names(client, run_id))[-3:] == ["Scheduled", "Pending", "Running"]
