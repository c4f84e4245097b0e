"""What a task's process has said by its end arrives, also where the API is slow or away."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
)
from prefect.settings import temporary_settings as settings

from prefect_ray_worker.task_runner.telemetry import Telemetry

LINE = {"message": "the last word"}


class SlowApi(ThreadingHTTPServer):
    """Keeps each request until it is told to answer.

    Attributes:
        asked: Set by the first request.
        answers: Lets requests go on.
        breaks: Whether it then closes the connection without an answer.
        got: The lines that it has taken.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked, self.answers = threading.Event(), threading.Event()
        self.breaks = False
        self.got: list[Any] = []


class _Handler(BaseHTTPRequestHandler):
    server: SlowApi

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.set()
        self.server.answers.wait(20)
        if self.server.breaks:
            self.close_connection = True
            return
        self.server.got += json.loads(body)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:  # of a CSRF token, which it does not have
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def api(tmp_path: Path) -> Iterator[SlowApi]:
    with SlowApi() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/api"
        its = {
            PREFECT_API_URL: url,
            PREFECT_CLIENT_MAX_RETRIES: 0,
            PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
        }
        with settings(its):
            yield server
        server.answers.set()
        server.shutdown()


def taken(telemetry: Telemetry, api: SlowApi) -> list[Any]:
    """Take the rest while a request with the first line is under way."""
    telemetry.put(logs=[dict(LINE)])
    assert api.asked.wait(10)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(telemetry.take().logs))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "the process could end now, and the request with it"
    api.answers.set()
    thread.join(15)
    assert not thread.is_alive()
    return found


def test_a_task_ends_after_a_slow_post_of_its_logs(api: SlowApi) -> None:
    assert taken(Telemetry(in_task_process=True), api) == []
    assert api.got == [LINE]


def test_logs_that_an_api_does_not_take_go_back_with_the_end_of_the_task(api: SlowApi) -> None:
    api.breaks = True
    assert taken(Telemetry(in_task_process=True), api) == [LINE]
