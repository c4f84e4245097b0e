"""`PrefectLogs`: what each answer of Prefect means, and that no request is repeated."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import anyio
import httpx
import pytest
import respx
from prefect.client.orchestration import PrefectClient
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    temporary_settings,
)

from prefect_ray_worker.errors import LogsRefused, LogsUnclear
from prefect_ray_worker.prefect_api.logs import LOGGER_NAME, PrefectLogs, SentLog, longest_message

API = "http://prefect.test/api"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOGS = [
    SentLog(f"{LOGGER_NAME}:{i}", NOW + timedelta(microseconds=i), 20, f"line {i}")
    for i in range(3)
]


@pytest.fixture
async def logs() -> AsyncIterator[PrefectLogs]:
    settings = {PREFECT_API_URL: API, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}
    with temporary_settings(settings):
        # Not entered: that would ask the server for its version.
        client = PrefectClient(API)
        yield PrefectLogs(client, uuid4(), anyio.CapacityLimiter(1))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(422), LogsRefused),
        (httpx.Response(413), LogsRefused),
        (httpx.Response(401), LogsUnclear),
        (httpx.Response(429, headers={"Retry-After": "0"}), LogsUnclear),
        (httpx.Response(500), LogsUnclear),
        (httpx.Response(503, headers={"Retry-After": "0"}), LogsUnclear),
        (httpx.ReadTimeout("slow"), LogsUnclear),
        (httpx.ReadError("cut"), LogsUnclear),
        (httpx.RemoteProtocolError("cut"), LogsUnclear),
        (httpx.ConnectError("refused"), LogsUnclear),
    ],
)
@respx.mock
async def test_request_is_made_once_and_its_failure_named(
    logs: PrefectLogs, answer: httpx.Response | Exception, error: type[Exception]
) -> None:
    route = respx.post(f"{API}/logs/").mock(side_effect=[answer, httpx.Response(201)])
    with logs.undisturbed(), pytest.raises(error):
        await logs.post(LOGS)
    assert route.call_count == 1


@respx.mock
async def test_only_logs_under_our_name_are_found(logs: PrefectLogs) -> None:
    def log(name: str, number: int) -> dict[str, object]:
        when = (NOW + timedelta(microseconds=number)).isoformat()
        return {"id": str(uuid4()), "name": name, "level": 20, "message": "x", "timestamp": when}

    answer = [log(f"{LOGGER_NAME}:7", 1), log("prefect.flow_runs", 2), log(LOGGER_NAME, 3)]
    respx.post(f"{API}/logs/filter").mock(return_value=httpx.Response(200, json=answer))
    page = await logs.find(after=NOW, before=NOW, newest_first=False, offset=0)
    assert [log.timestamp - NOW for log in page.logs] == [
        timedelta(microseconds=1),
        timedelta(microseconds=3),
    ]
    assert page.following == 3, "an empty page is the last one, however long pages are"
    assert type(page.logs[0].timestamp) is datetime


def test_longest_message_leaves_room_for_the_rest_of_a_log() -> None:
    assert 0 < longest_message() < 1_000_000
