"""`InterruptWatch`: what the run says decides what a SIGTERM means."""

import sys
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import anyio
import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Paused, Running, Scheduled, Suspended

from prefect_ray_worker.driver import interrupts
from prefect_ray_worker.driver.interrupts import InterruptWatch
from prefect_ray_worker.driver.signals import Termination
from prefect_ray_worker.driver.state_guard import StateGuard
from prefect_ray_worker.shared.ids import overdue_label

ATTEMPT, ANOTHER = "0123456789ab", "ba9876543210"


@pytest.mark.parametrize(
    ("overdue", "meaning"), [(None, "reschedule"), (ANOTHER, "reschedule"), (ATTEMPT, None)]
)
async def test_a_run_that_exceeds_its_limit_is_not_rescheduled(
    monkeypatch: pytest.MonkeyPatch, overdue: str | None, meaning: str | None
) -> None:
    """Another worker began it again before its own worker had settled it, again and again."""
    monkeypatch.setenv("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "reschedule")
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state=Running())
    run.labels = {overdue_label(overdue): "yes"} if overdue else {}
    assert await meaning_of_sigterm(run) == meaning


@pytest.mark.parametrize(
    ("state", "retry_type", "meaning"),
    [
        (Scheduled(), None, "settled"),
        (AwaitingRetry(), "reschedule", "settled"),
        (AwaitingRetry(), "in_process", None),
        (Suspended(), None, "relinquish"),
        (Paused(), None, None),
    ],
    ids=["scheduled", "retried", "retries here", "suspended", "paused here"],
)
async def test_a_run_that_another_attempt_goes_on_with_is_not_crashed(
    state: State[Any], retry_type: Any, meaning: str | None
) -> None:
    """Its worker stops the job of a run that was scheduled again, which made the run Crashed."""
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state=state)
    run.empirical_policy.retry_type = retry_type
    assert await meaning_of_sigterm(run) == meaning


async def meaning_of_sigterm(run: FlowRun) -> str | None:
    async def read(_: Any) -> FlowRun:
        return run

    guard = StateGuard(FlowRun(id=run.id, flow_id=run.flow_id, state=Running()))
    watch = InterruptWatch(run.id, ATTEMPT, Termination(), guard, grace=1, force=sys.exit)
    client = cast("PrefectClient", SimpleNamespace(read_flow_run=read))
    return await watch._meaning(client)


async def test_an_api_that_is_away_does_not_delay_the_end_of_a_flow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's client repeated the one request for a minute, and Ray killed the job after half."""
    monkeypatch.setattr(interrupts, "_MEANING_SECONDS", 0.3)
    run = FlowRun(id=uuid4(), flow_id=uuid4(), state=Running())
    guard = StateGuard(run)
    watch = InterruptWatch(run.id, ATTEMPT, Termination(), guard, grace=1, force=sys.exit)
    away = httpx.MockTransport(lambda _: httpx.Response(503))
    async with PrefectClient("http://prefect/api", httpx_settings={"transport": away}) as client:
        with anyio.fail_after(5), caplog.at_level("WARNING", "prefect.ray.driver"):
            assert await watch._meaning(client) is None
    assert "Cannot ask Prefect why this run has to end" in caplog.text
