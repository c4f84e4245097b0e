"""Events wake a worker; without events, or with too many of them, it goes on as before."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.client.schemas.objects import WorkPool
from prefect.settings import PREFECT_API_URL, temporary_settings
from websockets.asyncio.server import Server, ServerConnection, serve

from prefect_ray_worker.runs import wake as module
from prefect_ray_worker.runs.attended import AttendedRuns
from prefect_ray_worker.runs.wake import Wake
from tests.ports import free_port
from tests.waiting import wait_until

POOL = WorkPool(id=uuid4(), name="pool", type="ray", base_job_template={}, default_queue_id=uuid4())


class EventSocket:
    """Speaks the server's half of Prefect's event stream, `/events/out` (3.8.8)."""

    def __init__(self) -> None:
        self.filters: list[dict[str, Any]] = []
        self.connections: list[ServerConnection] = []
        self.refuses = False

    async def serve_one(self, connection: ServerConnection) -> None:
        await connection.recv()
        if self.refuses:
            await connection.send(json.dumps({"type": "auth_failure", "reason": "no such key"}))
            return
        await connection.send(json.dumps({"type": "auth_success"}))
        self.filters.append(json.loads(await connection.recv())["filter"])
        self.connections.append(connection)
        await connection.wait_closed()

    async def send(self, state: str, run_id: UUID | None = None) -> None:
        event = {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "received": datetime.now(UTC).isoformat(),
            "event": f"prefect.flow-run.{state.title()}",
            "resource": {
                "prefect.resource.id": f"prefect.flow-run.{run_id or uuid4()}",
                "prefect.state-type": state,
            },
            "related": [
                {
                    "prefect.resource.id": f"prefect.work-pool.{POOL.id}",
                    "prefect.resource.role": "work-pool",
                }
            ],
        }
        await self.connections[-1].send(json.dumps({"type": "event", "event": event}))

    async def connected(self, times: int = 1) -> None:
        await wait_until(lambda: len(self.connections) >= times, description="a connection")


class Looks:
    """Counts a worker's looks for runs."""

    def __init__(self) -> None:
        self.count = 0
        self.cancelled = 0
        self.fails = False

    async def look(self) -> None:
        self.count += 1
        if self.fails:
            raise RuntimeError("the API is away")

    def look_for_cancelled(self) -> None:
        self.cancelled += 1

    async def reach(self, count: int) -> None:
        await wait_until(lambda: self.count >= count, description=f"{count} looks")


@pytest.fixture
async def socket() -> AsyncIterator[EventSocket]:
    socket, port = EventSocket(), free_port()
    server: Server
    async with serve(socket.serve_one, "127.0.0.1", port, subprotocols=["prefect"]) as server:  # type: ignore[list-item]
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
            yield socket
        server.close()


@asynccontextmanager
async def waking(
    looks: Looks, turn: Callable[[UUID], int] = lambda _: 0
) -> AsyncGenerator[Wake, None]:
    wake = Wake(looks.look, looks.look_for_cancelled, turn, logging.getLogger("test.wake"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wake.run, lambda: POOL)
        yield wake
        tasks.cancel_scope.cancel()


async def test_scheduled_run_makes_one_look_and_a_cancelled_one_its_own(
    socket: EventSocket,
) -> None:
    looks = Looks()
    async with waking(looks):
        await socket.connected()
        await looks.reach(1)  # what was scheduled before the connection made no event here
        await socket.send("SCHEDULED")
        await looks.reach(2)
        await socket.send("CANCELLING")
        await wait_until(lambda: looks.cancelled == 1, description="a look for cancelled runs")
        assert looks.count == 2
    (asked,) = socket.filters
    assert asked["related"]["id"] == [f"prefect.work-pool.{POOL.id}"]
    assert asked["resource"]["labels"]["prefect.state-type"] == ["SCHEDULED", "CANCELLING"]


async def test_thousand_events_make_a_handful_of_looks(socket: EventSocket) -> None:
    looks = Looks()
    async with waking(looks):
        await socket.connected()
        for _ in range(1000):
            await socket.send("SCHEDULED")
        await looks.reach(2)
        await anyio.sleep(1.5)
        assert looks.count <= 6


async def test_dropped_connection_is_opened_again_and_the_gap_looked_for(
    socket: EventSocket, caplog: pytest.LogCaptureFixture
) -> None:
    looks = Looks()
    caplog.set_level(logging.INFO)
    async with waking(looks):
        await socket.connected()
        await looks.reach(1)
        await socket.connections[-1].close(1011)
        await socket.connected(times=2)
        await looks.reach(2)
    said = [record.message for record in caplog.records if record.name == "test.wake"]
    assert said[0].startswith("No events from Prefect (")
    assert said[0].endswith("The worker finds its runs by polling.")
    assert said[1:] == ["Prefect's events arrive again."]


async def test_refused_connection_is_said_once_with_the_reason(
    socket: EventSocket, caplog: pytest.LogCaptureFixture
) -> None:
    socket.refuses = True
    looks = Looks()
    caplog.set_level(logging.INFO)
    async with waking(looks):
        await anyio.sleep(2.5)
    (said,) = [record.message for record in caplog.records if record.name == "test.wake"]
    assert "no such key" in said
    assert looks.count == 0


async def test_failed_look_ends_nothing(socket: EventSocket) -> None:
    looks = Looks()
    looks.fails = True
    async with waking(looks):
        await socket.connected()
        await looks.reach(1)
        await socket.send("SCHEDULED")
        await looks.reach(2)


async def test_worker_waits_while_it_is_anothers_turn(
    socket: EventSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GAP_SECONDS", 0.0)  # it would be a wait as well
    looks, turns = Looks(), list[UUID]()
    run_id = uuid4()

    def turn(asked: UUID) -> int:
        turns.append(asked)
        return 2

    async with waking(looks, turn):
        await socket.connected()
        await looks.reach(1)
        began = anyio.current_time()
        await socket.send("SCHEDULED", run_id)
        await looks.reach(2)
        assert anyio.current_time() - began >= 0.8
    assert turns == [run_id]


async def test_hurried_question_does_not_wait_for_its_interval() -> None:
    asked = list[float]()

    async def ask(_: object) -> set[UUID]:
        asked.append(anyio.current_time())
        return set()

    runs = AttendedRuns(ask, interval=600, what="anything")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runs.run)
        with runs.attended(uuid4()):
            await wait_until(lambda: len(asked) == 1, description="the first question")
            for _ in range(50):
                runs.look_now()
            await wait_until(lambda: len(asked) == 2, description="the hurried one")
            await anyio.sleep(0.5)
            assert len(asked) == 2
        tasks.cancel_scope.cancel()
