"""What `JobsClient` sends, and what it makes of answers."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from prefect_ray_worker.errors import (
    AmbiguousError,
    ClusterUnreachable,
    InvalidConfiguration,
    JobAlreadyExists,
    JobNotFound,
    JobNotTerminal,
    JobsApiError,
    NotAuthorized,
    NotRayDashboard,
    RequestRejected,
)
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobStatus, JobSubmitRequest
from tests.fake_ray import FakeRay
from tests.fake_ray import answers as ray_says

ADDRESS = "http://ray-head:8265"
REQUEST = JobSubmitRequest(entrypoint="true", submission_id="a", runtime_env={}, metadata={})
SUBMITTED = {"job_id": "a", "submission_id": "a"}
HTML = "<!DOCTYPE html><html><body>Sign in</body></html>"

Meaning = type[JobsApiError]


@pytest.fixture(autouse=True)
def no_ray_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests must not depend on the tokens and proxies of whoever runs them."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def ray() -> Any:
    with respx.mock(base_url=ADDRESS, assert_all_called=False) as router:
        yield router


@pytest.fixture
async def client(ray: respx.MockRouter) -> AsyncIterator[JobsClient]:
    async with JobsClient(Connection(ADDRESS)) as opened:
        yield opened


def text(code: int, body: str, kind: str = "text/plain; charset=utf-8") -> httpx.Response:
    return httpx.Response(code, text=body, headers={"content-type": kind})


async def test_each_method_asks_its_endpoint(ray: respx.MockRouter, client: JobsClient) -> None:
    ray.get("/api/version").respond(json={"version": "4", "ray_version": "2.60.0"})
    ray.post("/api/jobs/").respond(json=SUBMITTED)
    ray.get("/api/jobs/").respond(json=[{"submission_id": "a", "status": "PENDING"}])
    ray.get("/api/jobs/a").respond(json={"submission_id": "a", "status": "RUNNING"})
    ray.post("/api/jobs/a/stop").respond(json={"stopped": True})
    ray.delete("/api/jobs/a").respond(json={"deleted": True})
    assert (await client.version()).ray_version == "2.60.0"
    assert await client.submit(REQUEST) == "a"
    assert [job.status for job in await client.list()] == [JobStatus.PENDING]
    assert (await client.get("a")).status is JobStatus.RUNNING
    assert await client.stop("a") is True
    assert await client.delete("a") is True


async def test_a_path_prefix_stays_in_front() -> None:
    async with JobsClient(Connection("https://ingress/clusters/blue")) as client:
        with respx.mock() as router:
            route = router.get("https://ingress/clusters/blue/api/jobs/").respond(json=[])
            assert await client.list() == []
    assert route.called


async def test_only_fields_that_are_set_are_sent(ray: respx.MockRouter, client: JobsClient) -> None:
    """Older clusters answer 400 to keys that they do not know."""
    route = ray.post("/api/jobs/").respond(json=SUBMITTED)
    await client.submit(REQUEST)
    assert json.loads(route.calls.last.request.content) == {
        "entrypoint": "true",
        "submission_id": "a",
        "runtime_env": {},
        "metadata": {},
    }
    await client.submit(REQUEST.model_copy(update={"entrypoint_num_cpus": 0.5}))
    assert json.loads(route.calls.last.request.content)["entrypoint_num_cpus"] == 0.5


async def test_nothing_that_looks_like_a_browser_is_sent(
    ray: respx.MockRouter, client: JobsClient
) -> None:
    """Ray answers 405 to it."""
    route = ray.post("/api/jobs/a/stop").respond(json={"stopped": False})
    await client.stop("a")
    headers = route.calls.last.request.headers
    assert not headers["user-agent"].startswith("Mozilla")
    suspicious = ("origin", "referer", "sec-fetch-", "access-control-")
    assert not [name for name in headers if name.startswith(suspicious)]


@pytest.mark.parametrize(
    ("answer", "look_up", "submission"),
    [
        (text(403, ray_says.INVALID_TOKEN), NotAuthorized, NotAuthorized),
        (text(200, HTML, "text/html"), NotRayDashboard, NotRayDashboard),
        (
            httpx.Response(302, headers={"location": "/login"}),
            NotRayDashboard,
            NotRayDashboard,
        ),
        (text(404, "404: Not Found"), NotRayDashboard, NotRayDashboard),
        (text(404, "Job a does not exist"), JobNotFound, JobNotFound),
        (text(429, ""), ClusterUnreachable, AmbiguousError),
        (text(500, ray_says.SERVER_IN_TROUBLE), ClusterUnreachable, AmbiguousError),
        (text(502, HTML, "text/html"), ClusterUnreachable, AmbiguousError),
        (text(503, "no healthy upstream"), ClusterUnreachable, AmbiguousError),
        (text(504, ""), ClusterUnreachable, AmbiguousError),
        (text(500, ray_says.already_exists("a")), JobAlreadyExists, JobAlreadyExists),
        (text(500, ray_says.not_terminal("a", "PENDING")), JobNotTerminal, JobNotTerminal),
        (text(500, ray_says.bad_label("x y")), RequestRejected, RequestRejected),
        (text(400, ray_says.bad_request("TypeError: x")), RequestRejected, RequestRejected),
        (text(405, ray_says.no_browsers("POST")), RequestRejected, RequestRejected),
        (text(200, '{"submission_id": '), ClusterUnreachable, AmbiguousError),
        (text(200, ""), ClusterUnreachable, AmbiguousError),
        (httpx.Response(200, json=["a"]), ClusterUnreachable, AmbiguousError),
        (httpx.Response(200, json=None), ClusterUnreachable, AmbiguousError),
        (httpx.Response(200, json={"submission_id": 5}), ClusterUnreachable, AmbiguousError),
    ],
)
async def test_an_odd_answer_has_one_meaning(
    ray: respx.MockRouter,
    client: JobsClient,
    answer: httpx.Response,
    look_up: Meaning,
    submission: Meaning,
) -> None:
    ray.get("/api/jobs/a").mock(return_value=answer)
    submit = ray.post("/api/jobs/").mock(return_value=answer)
    with pytest.raises(look_up):
        await client.get("a")
    with pytest.raises(submission):
        await client.submit(REQUEST)
    assert submit.call_count == 1


@pytest.mark.parametrize(
    ("trouble", "submission"),
    [
        (httpx.ConnectError("refused"), ClusterUnreachable),
        (httpx.ConnectTimeout("5 s"), ClusterUnreachable),
        (httpx.PoolTimeout("busy"), ClusterUnreachable),
        (httpx.ReadTimeout("60 s"), AmbiguousError),
        (httpx.WriteError("reset"), AmbiguousError),
        (httpx.RemoteProtocolError("cut"), AmbiguousError),
    ],
)
async def test_without_an_answer_only_an_unsent_submission_is_surely_without_effect(
    ray: respx.MockRouter,
    client: JobsClient,
    trouble: httpx.TransportError,
    submission: Meaning,
) -> None:
    ray.route().mock(side_effect=trouble)
    with pytest.raises(submission):
        await client.submit(REQUEST)
    for look_up in (client.get("a"), client.list(), client.stop("a"), client.delete("a")):
        with pytest.raises(ClusterUnreachable, match=ADDRESS):
            await look_up


async def test_a_submission_may_take_longer_than_a_look_up(
    ray: respx.MockRouter, client: JobsClient
) -> None:
    """The head agent takes seconds to wake; giving up early makes a submission ambiguous."""
    submit = ray.post("/api/jobs/").respond(json=SUBMITTED)
    look_up = ray.get("/api/jobs/").respond(json=[])
    await client.submit(REQUEST)
    await client.list()
    assert submit.calls.last.request.extensions["timeout"] == {
        "connect": 5,
        "read": 60,
        "write": 60,
        "pool": 60,
    }
    assert look_up.calls.last.request.extensions["timeout"]["read"] == 30


async def test_what_a_younger_ray_adds_is_kept(ray: respx.MockRouter, client: JobsClient) -> None:
    record = {"submission_id": "a", "status": "PAUSED", "colour": "blue", "driver_info": None}
    ray.get("/api/jobs/a").respond(json=record)
    job = await client.get("a")
    assert job.status == "PAUSED"
    assert not job.is_terminal
    assert job.model_extra == {"colour": "blue", "driver_info": None}


@pytest.mark.parametrize("record", [{"submission_id": "a"}, {"status": None}, "a", 5])
async def test_a_record_without_a_status_is_no_answer(
    ray: respx.MockRouter, client: JobsClient, record: object
) -> None:
    ray.get("/api/jobs/a").respond(json=record)
    with pytest.raises(ClusterUnreachable):
        await client.get("a")


async def test_cookies_and_headers_of_the_connection_are_sent(ray: respx.MockRouter) -> None:
    route = ray.get("/api/jobs/").respond(json=[])
    connection = Connection(ADDRESS, headers=(("X-Team", "blue"),), cookies=(("session", "s"),))
    async with JobsClient(connection) as client:
        await client.list()
    sent = route.calls.last.request.headers
    assert sent["x-team"] == "blue"
    assert sent["cookie"] == "session=s"


@pytest.mark.parametrize(
    ("field", "value"),
    [("headers", "top-secret\n"), ("headers", "top-s\u00e9cret"), ("cookies", "top-secret\r\n")],
)
async def test_a_header_that_is_no_http_is_refused_without_showing_it(
    field: str, value: str
) -> None:
    """A secret from a file often ends in a line end."""
    async with FakeRay() as ray:
        connection = replace(Connection(ray.address), **{field: (("X-Key", value),)})
        with pytest.raises(RequestRejected) as caught:
            async with JobsClient(connection) as client:
                await client.list()
    assert "top-s" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_useless_ca_file_is_named(tmp_path: Path, content: str | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    with pytest.raises(InvalidConfiguration, match=r"ca\.pem"):
        async with JobsClient(Connection("https://ray-head", ca_file=str(ca_file))):
            pass


async def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="context manager"):
        await JobsClient(Connection(ADDRESS)).list()


async def test_one_unreadable_record_does_not_hide_the_others(
    ray: respx.MockRouter, client: JobsClient
) -> None:
    ray.get("/api/jobs/").respond(
        json=[{"submission_id": "a", "status": "RUNNING"}, {"submission_id": "b"}, 7]
    )
    assert [job.submission_id for job in await client.list()] == ["a"]


@pytest.mark.parametrize("answer", [{}, {"version": "4"}])
async def test_json_of_something_else_is_no_version(
    ray: respx.MockRouter, client: JobsClient, answer: dict[str, str]
) -> None:
    ray.get("/api/version").respond(json=answer)
    with pytest.raises(ClusterUnreachable):
        await client.version()


async def test_a_login_page_is_no_package(ray: respx.MockRouter, client: JobsClient) -> None:
    ray.get("/api/packages/gcs/a.zip").respond(html="<html>Please log in</html>")
    with pytest.raises(NotRayDashboard):
        await client.has_package("a.zip")
