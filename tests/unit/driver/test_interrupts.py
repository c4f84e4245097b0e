"""`InterruptWatch`: what the run says decides what a SIGTERM means."""

import sys
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Running

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

    async def read(_: Any) -> FlowRun:
        return run

    guard = StateGuard(run)
    watch = InterruptWatch(run.id, ATTEMPT, Termination(), guard, grace=1, force=sys.exit)
    client = cast("PrefectClient", SimpleNamespace(read_flow_run=read))
    assert await watch._meaning(client) == meaning
