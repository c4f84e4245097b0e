"""Events of many short tasks, and an API that drops what it has no room for."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLOUD_API_URL,
    temporary_settings,
)

from prefect_ray_worker.task_runner import event_window, runner
from prefect_ray_worker.task_runner.telemetry import Telemetry

MOST = 1_000
"""How many may be on the way in these tests."""


class Server(ThreadingHTTPServer):
    """Records so many events a second, and drops those for which its queue has no room.

    Prefect's does so (3.8.8); `tests/task_runner/test_events.py` asks the real one.
    """

    daemon_threads = True

    def __init__(self, *, rate: float, room: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.rate, self.room = rate, room
        self.queue: list[dict[str, Any]] = []
        self.recorded: list[dict[str, Any]] = []
        self.dropped = self.looks = 0
        self.busy_until = 0.0
        self.lock = threading.Lock()

    def work(self) -> None:
        """Record what could be recorded since the last time."""
        now = time.monotonic()
        can = int((now - max(self.busy_until, now - 10)) * self.rate) if self.busy_until else 0
        self.busy_until = now if can or not self.busy_until else self.busy_until
        done, self.queue = self.queue[:can], self.queue[can:]
        self.recorded += done

    def answer(self, path: str, content: Any) -> Any:
        with self.lock:
            self.work()
            if path.endswith("/events"):
                free = self.room - len(self.queue)
                self.queue += content[:free]
                self.dropped += len(content[free:])
                return {}
            if path.endswith("/logs/"):
                return {}
            self.looks += 1
            wanted = content["task_runs"]["id"]["any_"]
            return [_run(e) for e in self.recorded if _id(e) in wanted]


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(cast("Server", self.server).answer(self.path, content)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


def _id(event: dict[str, Any]) -> str:
    return event["resource"]["prefect.resource.id"].removeprefix("prefect.task-run.")


def _run(event: dict[str, Any]) -> dict[str, Any]:
    state = {"type": "COMPLETED", "name": "Completed", "timestamp": event["occurred"]}
    return {"id": _id(event), "task_key": "t", "dynamic_key": "0", "state": state}


def ends(count: int) -> list[bytes]:
    """Return the events of the ends of tasks, as pydantic dumps them."""
    return [
        json.dumps(
            {
                "occurred": datetime.now(UTC).isoformat(),
                "event": "prefect.task-run.Completed",
                "resource": {
                    "prefect.resource.id": f"prefect.task-run.{uuid4()}",
                    "prefect.orchestration": "client",
                },
            },
            separators=(",", ":"),
        ).encode()
        for _ in range(count)
    ]


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_window, "_MOST", MOST)
    monkeypatch.setattr(event_window, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr("prefect_ray_worker.task_runner.telemetry._BEHIND_SECONDS", 0.05)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(rate=2_500, room=MOST) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
            yield server
        server.shutdown()


def test_an_api_that_is_behind_loses_nothing(server: Server) -> None:
    """Of 6,000 tasks without work, a Prefect server had lost 1,500, and some ran for ever."""
    box = Telemetry()
    box.put(ends(5_000))
    assert box.flush(20, patiently=True)
    assert (server.dropped, len(server.recorded) + len(server.queue)) == (0, 5_000)


def test_flows_beside_each_other_lose_nothing(server: Server) -> None:
    """What an API has room for is for all flows, of which each knows its own events."""
    server.room = 3 * MOST
    boxes: list[Telemetry] = []
    for retries in (5, 6, 7):  # each has a sender of its own, as in a process of its own
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: retries}):
            boxes.append(Telemetry())
            boxes[-1].put(ends(3_000))
    assert all(box.flush(20, patiently=True) for box in boxes)
    assert (server.dropped, len(server.recorded) + len(server.queue)) == (0, 9_000)


def test_logs_do_not_wait_for_events(server: Server) -> None:
    server.rate = 0
    box = Telemetry()
    box.put(ends(2 * MOST), [{"message": "text"}])
    deadline = time.monotonic() + 10
    while not box.is_behind:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not box._logs
    server.rate = 2_500
    assert box.flush(20, patiently=True)


def test_a_flow_that_is_interrupted_sends_all_at_once(server: Server) -> None:
    """It has half a minute: an API may still record what it gets, but never what it does not."""
    server.rate, server.room = 0, 10_000
    box = Telemetry()
    box.put(ends(3_000))
    assert box.flush(10)
    assert len(server.queue) == 3_000


def test_a_flow_that_is_stopped_while_it_waits_sends_the_rest(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.rate, server.room = 0, 10_000
    box = Telemetry()
    monkeypatch.setattr("prefect_ray_worker.task_runner.telemetry._telemetry", box)
    box.put(ends(2 * MOST))
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runner._flush(120)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(server.queue) == 2 * MOST


def test_few_events_are_sent_without_a_question(server: Server) -> None:
    box = Telemetry()
    box.put(ends(MOST))
    assert box.flush(10, patiently=True)
    assert server.looks == 0


def test_prefect_cloud_gets_all_at_once(server: Server) -> None:
    server.rate, server.room = 0, 10_000
    with temporary_settings({PREFECT_CLOUD_API_URL: PREFECT_API_URL.value()}):
        box = Telemetry()
        box.put(ends(3_000))
        assert box.flush(10, patiently=True)
    assert (len(server.queue), server.looks) == (3_000, 0)


def test_events_of_users_are_no_sign(server: Server) -> None:
    """They are recorded elsewhere, and their resource can be anything."""
    event = {"event": "prefect.task-run.mine", "resource": {"prefect.resource.id": "mine"}}
    box = Telemetry()
    box.put([json.dumps(event, separators=(",", ":")).encode()] * 2 * MOST)
    assert box.flush(10, patiently=True)
    assert server.looks == 0


def test_an_api_that_records_nothing_stops_no_flow(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its recorder may be off, or may have dropped them for others' sake."""
    monkeypatch.setattr(event_window, "_PATIENCE_SECONDS", 0.5)
    server.rate, server.room = 0, 10_000
    box = Telemetry()
    box.put(ends(2 * MOST))
    assert box.flush(10, patiently=True)
    assert len(server.queue) == 2 * MOST
    assert f"recorded none of {MOST} events" in caplog.text


def test_a_flush_without_progress_ends(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.rate = 0
    box = Telemetry()
    box.put(ends(MOST + 3))
    assert not box.flush(1, patiently=True)
    assert "3 events and 0 lines of logs of tasks could not be sent" in caplog.text
    server.rate = 2_500
    assert box.flush(10, patiently=True)


def test_tasks_that_begin_meanwhile_keep_theirs_until_their_end(server: Server) -> None:
    """Otherwise each long task would send its first states beside the driver."""
    box = Telemetry(in_task_process=True)
    box.hold(is_held=True)
    box.put(ends(1))
    time.sleep(0.6)  # one that is not held has been sent by then
    assert not server.queue
    box.hold(is_held=False)
    deadline = time.monotonic() + 5
    while not server.queue:
        assert time.monotonic() < deadline
        time.sleep(0.01)
