"""What of a task's logs and events reaches an API that is busy or being replaced."""

import threading
import time
from typing import Any, cast

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import PrefectHTTPStatusError

from prefect_ray_worker.task_runner import telemetry
from prefect_ray_worker.task_runner.telemetry import Telemetry, TelemetrySender

PAGE = httpx.Response(404, html="<html>no backend</html>")
NO_SUCH_PATH = httpx.Response(404, json={"detail": "Not Found"})


class Api:
    """Answers requests, in the place of Prefect's client."""

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
    monkeypatch.setattr(telemetry, "_RETRY_SECONDS", 0.01)


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
    monkeypatch.setattr(telemetry, "send_event_by_websocket", sent.append)
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
