"""What of a task's logs and events reaches an API that is busy or being replaced."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import httpx
import pytest
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_LOGGING_TO_API_BATCH_SIZE,
    PREFECT_LOGGING_TO_API_MAX_LOG_SIZE,
    temporary_settings,
)
from prefect.states import Cancelled, Completed, Failed

from prefect_ray_worker.task_runner import runner, telemetry, telemetry_sender
from prefect_ray_worker.task_runner.telemetry import Telemetry
from prefect_ray_worker.task_runner.telemetry_sender import TelemetrySender

PAGE = httpx.Response(404, html="<html>no backend</html>")
NO_SUCH_PATH = httpx.Response(404, json={"detail": "Not Found"})


class Api:
    """Answers requests, in the place of Prefect's client."""

    server_type = ServerType.SERVER

    def __init__(self, *refusals: httpx.Response) -> None:
        self.refusals = list(refusals)
        self.asked: list[str] = []

    def request(self, method: str, path: str, **_: Any) -> None:
        self.asked.append(path)
        if self.refusals:
            response = self.refusals.pop(0)
            response.request = httpx.Request(method, f"http://api{path}")
            error = httpx.HTTPStatusError("no", request=response.request, response=response)
            raise PrefectHTTPStatusError.from_httpx_error(error)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_sender, "_RETRY_SECONDS", 0.01)


def sender(api: Api) -> TelemetrySender:
    return TelemetrySender(cast("SyncPrefectClient", api))


@pytest.mark.parametrize("answer", [PAGE, httpx.Response(429), httpx.Response(503)])
def test_logs_and_events_are_not_lost_while_an_api_is_replaced(answer: httpx.Response) -> None:
    """One 404 page of a proxy lost the logs, and sent all later events one by one."""
    api = Api(answer, answer)
    sender(api).logs([{"message": "text"}])
    assert api.asked == ["/logs/"] * 3
    api = Api(answer)
    sender(api).events([b"{}"])
    assert api.asked == ["/events"] * 2


@pytest.mark.parametrize("code", [422, 500])
def test_what_may_have_been_taken_is_not_sent_again(code: int) -> None:
    api = Api(httpx.Response(code))
    with pytest.raises(PrefectHTTPStatusError):
        sender(api).logs([{"message": "text"}])
    assert len(api.asked) == 1


def test_an_api_without_batches_gets_events_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(telemetry_sender, "send_event_by_websocket", sent.append)
    api = Api(NO_SUCH_PATH)
    sender(api).events([b"1", b"2"])
    assert (api.asked, sent) == (["/events"], [b"1", b"2"])


class CountedWaits(threading.Condition):
    """Counts how often somebody waits, which is how often somebody was woken."""

    number = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.number += 1
        return super().wait(timeout)


def test_short_tasks_do_not_wake_the_thread_for_each_event() -> None:
    """Wake-ups were a third of what a task without work costs."""
    box = Telemetry(in_task_process=True)
    waits = box._changed = CountedWaits()
    taken = 0
    for _ in range(100):
        box.put(events=[b"{}"])
        time.sleep(0.001)  # the task: the thread could look now
        box.put(events=[b"{}"])
        taken += len(box.take().events)
    assert taken == 200
    assert waits.number < 20


class Proxy(ThreadingHTTPServer):
    """An API behind a proxy that takes requests up to a size, as nginx does by default."""

    daemon_threads = True

    def __init__(self, most_bytes: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.most_bytes = most_bytes
        self.answers = Counter[int]()
        self.taken: dict[str, list[Any]] = {"/api/events": [], "/api/logs/": []}
        self.largest = 0
        self.fails_on = "no item has this"
        """Answers 500 to a request with this text."""

    def answer(self, path: str, body: bytes) -> int:
        """Return the status that answers a request."""
        if len(body) > self.most_bytes:
            return 413
        if self.fails_on.encode() in body:
            return 500
        self.largest = max(self.largest, len(body))
        self.taken[path] += json.loads(body)
        return 201


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        proxy = cast("Proxy", self.server)
        status = proxy.answer(self.path, body)
        proxy.answers[status] += 1
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(most_bytes=1024 * 1024) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
            yield server
        server.shutdown()


def items(count: int, size: int) -> list[bytes]:
    """Return events of a size."""
    return [json.dumps({"id": n, "pad": "x" * size}).encode() for n in range(count)]


def lines(count: int, size: int) -> list[dict[str, Any]]:
    return [{"message": f"{n} " + "x" * size} for n in range(count)]


def ids_taken(proxy: Proxy) -> list[int]:
    return [event["id"] for event in proxy.taken["/api/events"]]


def test_requests_are_smaller_than_what_proxies_take(proxy: Proxy) -> None:
    """Three events of a large fan-in were one request: a 413, which lost all that came after."""
    box = Telemetry()
    box.put(items(3, 700_000), lines(3, 700_000))
    assert box.flush(30)
    assert ids_taken(proxy) == [0, 1, 2]
    assert len(proxy.taken["/api/logs/"]) == 3
    assert set(proxy.answers) == {201}


def test_a_proxy_that_takes_less_gets_less(proxy: Proxy) -> None:
    proxy.most_bytes = 100_000
    box = Telemetry()
    box.put([*items(50, 10_000), *items(1, 200_000), *items(50, 10_000)], lines(50, 10_000))
    assert box.flush(30)
    assert ids_taken(proxy) == [*range(50), *range(50)]
    assert len(proxy.taken["/api/logs/"]) == 50
    assert proxy.answers[413] < 10


def test_a_refused_request_loses_only_what_is_in_it(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fails_on = '"id": 501,'
    box = Telemetry()
    box.put(items(1200, 10), lines(3, 10))
    assert box.flush(30)
    assert ids_taken(proxy) == [*range(500), *range(1000, 1200)]
    assert len(proxy.taken["/api/logs/"]) == 3
    assert "500 events and 0 lines of logs of tasks could not be sent" in caplog.text


def test_logs_keep_to_prefects_limit(proxy: Proxy) -> None:
    small = {PREFECT_LOGGING_TO_API_BATCH_SIZE: 50_000, PREFECT_LOGGING_TO_API_MAX_LOG_SIZE: 20_000}
    with temporary_settings(small):
        box = Telemetry()
        box.put(logs=lines(20, 10_000))
        assert box.flush(30)
    assert len(proxy.taken["/api/logs/"]) == 20
    assert proxy.largest < 51_000


def test_an_api_that_is_away_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each request of a large batch."""
    monkeypatch.setattr(telemetry_sender, "_PATIENCE_SECONDS", 0.3)
    api = Api(*[httpx.Response(503)] * 1000)
    monkeypatch.setattr(telemetry, "sender_for", lambda _: sender(api))
    box = Telemetry()
    begun = time.monotonic()
    box.put(items(5000, 1))
    assert box.flush(30)
    assert time.monotonic() - begun < 2


def test_what_is_not_sent_in_time_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Events of tasks were dropped without a word when the flow ended before the API answered."""
    api = Api(*[httpx.Response(503)] * 1000)
    monkeypatch.setattr(telemetry, "sender_for", lambda _: sender(api))
    box = Telemetry()
    box.put(items(3, 1), lines(2, 1))
    assert not box.flush(0.5)
    assert "3 events and 2 lines of logs of tasks could not be sent" in caplog.text
    api.refusals.clear()
    assert box.flush(30)


@pytest.mark.parametrize(
    ("exc", "state", "seconds"),
    [
        (None, Completed(), 120),
        (ValueError(), Failed(), 120),
        (KeyboardInterrupt(), None, 30),
        (None, Cancelled(), 30),
    ],
    ids=["completed", "failed", "interrupted", "cancelled"],
)
def test_the_end_of_a_flow_waits_as_long_as_its_driver(
    exc: object, state: State[Any] | None, seconds: float
) -> None:
    """An API that asked for a minute's pause outlived it; an interrupted flow has less time."""
    assert runner._seconds_to_flush(exc, state) == seconds
