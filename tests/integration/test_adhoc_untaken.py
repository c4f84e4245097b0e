"""A caller whose run no worker takes is told why; it waited in silence."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import pytest
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled, Pending

from prefect_ray_worker.adhoc import untaken
from prefect_ray_worker.adhoc.calling import run_again
from prefect_ray_worker.adhoc.following import RayFlowRunFuture
from prefect_ray_worker.errors import InvalidConfiguration
from tests.integration.harness import Pool
from tests.integration.test_adhoc_sending import served, submit
from tests.waiting import wait_until

__all__ = ["served"]
SOON = 0.2


class Said:
    """What the caller's terminal has shown so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.text = ""

    async def shows(self, text: str) -> None:
        def there() -> bool:
            self.text += self._capsys.readouterr().err
            return text in self.text

        await wait_until(there, timeout=20, description=f"{text!r} on the terminal")


@asynccontextmanager
async def waiting(pool: Pool) -> AsyncIterator[UUID]:
    """Call a flow and wait for its end in a thread; yield the run. It is cancelled at the end."""
    run_id = await submit(pool, b"content")
    future = RayFlowRunFuture[Any](run_id)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, future.wait)
        try:
            yield run_id
        finally:  # else the thread waits for ever
            await pool.client.set_flow_run_state(run_id, Cancelled(), force=True)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    monkeypatch.setattr(untaken, "_PATIENCE_SECONDS", SOON)
    monkeypatch.setattr(untaken, "_BETWEEN_LOOKS_SECONDS", SOON)
    return Said(capsys)


async def poll(pool: Pool) -> None:
    """Ask for runs as a worker does: the server then calls the pool's queues ready."""
    await pool.client.get_scheduled_flow_runs_for_work_pool(pool.name)


async def test_pool_that_is_paused_or_lost_its_worker_is_named(served: Pool, said: Said) -> None:
    async with waiting(served):
        await poll(served)
        await said.shows("yet. Why: A worker's next look")
        await served.client.update_work_pool(served.name, WorkPoolUpdate(is_paused=True))
        await said.shows(f"is paused: `prefect work-pool resume {served.name}`")
        await served.client.update_work_pool(served.name, WorkPoolUpdate(is_paused=False))
        # A dead worker's last heartbeat: the server misses the next ones.
        await served.client.send_worker_heartbeat(served.name, "elsewhere", 1)
        await said.shows(f"is online: `prefect worker start --pool {served.name}`")
    assert said.text.count("is paused") == said.text.count("is online") == 1, said.text


async def test_queue_that_no_worker_polls_is_named(served: Pool, said: Said) -> None:
    async with waiting(served):
        await said.shows(f"polls its work queue: `prefect worker start --pool {served.name} --work")
        await poll(served)
        await said.shows("yet. Why: A worker's next look")
        await served.client.update_work_pool(served.name, WorkPoolUpdate(concurrency_limit=0))
        await said.shows("A slot of the work pool: 0 of 0 are taken.")


async def test_pool_that_was_deleted_is_named(served: Pool, said: Said) -> None:
    async with waiting(served):
        await poll(served)
        await said.shows("yet. Why: A worker's next look")
        await served.client.delete_work_pool(served.name)
        await said.shows(f"'{served.name}' does not exist any more")
        await served.client.create_work_pool(WorkPoolCreate(name=served.name, type="ray"))
        await said.shows("Why: Its work pool or work queue was deleted, so no worker is given it")


async def test_run_that_has_lost_its_queue_does_not_run_again(served: Pool) -> None:
    """It was scheduled, and waited for ever without a word."""
    run_id = await submit(served, b"content")
    await served.client.set_flow_run_state(run_id, Cancelled(), force=True)
    await served.client.delete_work_pool(served.name)
    await served.client.create_work_pool(WorkPoolCreate(name=served.name, type="ray"))
    with pytest.raises(InvalidConfiguration, match="was deleted, so no worker would be given it"):
        await anyio.to_thread.run_sync(run_again, run_id)
    assert await served.state(run_id) == StateType.CANCELLED


async def test_nothing_is_said_of_a_run_that_was_taken(served: Pool, said: Said) -> None:
    async with waiting(served) as run_id:
        await served.client.set_flow_run_state(run_id, Pending())
        await anyio.sleep(3 * SOON)
        await said.shows("")
        said.text = ""
        await served.client.update_work_pool(served.name, WorkPoolUpdate(is_paused=True))
        await anyio.sleep(5 * SOON)
        await said.shows("")
        assert said.text == ""
