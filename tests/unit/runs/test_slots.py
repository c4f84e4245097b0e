"""`DeploymentSlots`: leases are renewed while they are kept, and a lost one is said once."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.client.schemas.objects import FlowRun

from prefect_ray_worker.runs.slots import DeploymentSlots
from tests.waiting import wait_until

INTERVAL = 0.05
RUN = FlowRun(id=uuid4(), flow_id=uuid4(), deployment_id=uuid4())
LOG = logging.getLogger("tests.slots")


class Leases:
    """Counts renewals, and answers them."""

    def __init__(self) -> None:
        self.renewed: list[UUID] = []
        self.answer: bool | Exception = True
        self.shown: list[tuple[UUID, str]] = []
        self.waits: bool | Exception = True

    async def renew(self, lease_id: UUID, deployment_id: UUID | None) -> bool:
        assert deployment_id == RUN.deployment_id
        self.renewed.append(lease_id)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def show(self, flow_run_id: UUID, message: str) -> bool:
        self.shown.append((flow_run_id, message))
        if isinstance(self.waits, Exception):
            raise self.waits
        return self.waits


@asynccontextmanager
async def renewing(leases: Leases) -> AsyncIterator[DeploymentSlots]:
    slots = DeploymentSlots(leases.renew, leases.show, interval=INTERVAL)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slots.run)
        yield slots
        tasks.cancel_scope.cancel()


async def test_a_lease_is_renewed_for_as_long_as_it_is_kept() -> None:
    leases, lease = Leases(), uuid4()
    async with renewing(leases) as slots:
        with slots.kept(lease, RUN, LOG), slots.kept(None, RUN, LOG):
            await wait_until(lambda: len(leases.renewed) >= 3, description="renewals")
        await anyio.sleep(INTERVAL * 2)
        before = len(leases.renewed)
        await anyio.sleep(INTERVAL * 4)
        assert len(leases.renewed) == before
    assert set(leases.renewed) == {lease}


async def test_an_api_that_is_away_is_asked_again() -> None:
    leases = Leases()
    leases.answer = RuntimeError("the API is away")
    async with renewing(leases) as slots:
        with slots.kept(uuid4(), RUN, LOG):
            await wait_until(lambda: len(leases.renewed) >= 3, description="further tries")


@pytest.mark.parametrize("waits", [True, False])
async def test_a_lost_lease_is_said_once_with_the_settings_to_raise(
    caplog: pytest.LogCaptureFixture, waits: bool
) -> None:
    """Not where the run does not wait any more: its flow, or its end, has given the lease up."""
    leases = Leases()
    leases.answer, leases.waits = False, waits
    async with renewing(leases) as slots:
        with slots.kept(uuid4(), RUN, LOG):
            await wait_until(lambda: leases.shown, description="what is shown")
            await anyio.sleep(INTERVAL * 4)
    assert len(leases.renewed) == 1
    ((run, message),) = leases.shown
    assert run == RUN.id
    assert "grace_period_seconds" in message
    said = [record.message for record in caplog.records if record.name == LOG.name]
    assert said == ([message] if waits else [])


async def test_a_lost_lease_is_shown_once_the_api_answers() -> None:
    leases = Leases()
    leases.answer, leases.waits = False, RuntimeError("the API is away")
    async with renewing(leases) as slots:
        with slots.kept(uuid4(), RUN, LOG):
            await wait_until(lambda: len(leases.shown) >= 2, description="another try")
