"""`JobsClient` against broken connections and half answers, over real sockets."""

import asyncio
from typing import Any

import httpx
import pytest

from prefect_ray_worker.errors import (
    AmbiguousError,
    ClusterUnreachable,
    JobAlreadyExists,
    JobNotFound,
    JobsApiError,
    NotRayDashboard,
)
from prefect_ray_worker.ray_api import http
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.http import open_http
from prefect_ray_worker.ray_api.logs import LogsClient, log_file_name
from prefect_ray_worker.ray_api.models import JobStatus, JobSubmitRequest
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.fake_ray import FakeRay, Fault, Kind, Timeline
from tests.waiting import wait_until

SUBMIT = ("POST", "/api/jobs/$")
REQUEST = JobSubmitRequest(entrypoint="true", submission_id="a", runtime_env={}, metadata={})


@pytest.mark.parametrize(
    ("kind", "error", "recorded"),
    [
        (Kind.DROP, AmbiguousError, False),
        (Kind.ACT_THEN_DROP, AmbiguousError, True),
        (Kind.ACT_THEN_500, AmbiguousError, True),
        (Kind.HALF_BODY, AmbiguousError, True),
        (Kind.STATUS, AmbiguousError, False),
        (Kind.LOGIN_PAGE, NotRayDashboard, False),
        (Kind.REDIRECT, NotRayDashboard, False),
    ],
)
async def test_a_submission_that_goes_wrong_can_be_read_back(
    ray: FakeRay, client: JobsClient, kind: Kind, error: type[JobsApiError], recorded: bool
) -> None:
    fault = ray.faults.add(Fault(*SUBMIT, kind=kind))
    with pytest.raises(error):
        await client.submit(REQUEST)
    assert fault.hits == 1
    assert ("a" in ray.jobs) is recorded
    if recorded:
        assert (await client.get("a")).submission_id == "a"
        with pytest.raises(JobAlreadyExists):
            await client.submit(REQUEST)
    else:
        with pytest.raises(JobNotFound):
            await client.get("a")
        assert await client.submit(REQUEST) == "a"


@pytest.mark.parametrize("kind", [Kind.DROP, Kind.HALF_BODY, Kind.STATUS, Kind.ACT_THEN_500])
async def test_a_look_up_that_goes_wrong_may_be_repeated(
    ray: FakeRay, client: JobsClient, kind: Kind
) -> None:
    ray.add_job("a")
    ray.faults.add(Fault("GET", "/api/jobs/", kind=kind, times=2))
    for _ in range(2):
        with pytest.raises(ClusterUnreachable):
            await client.get("a")
    assert (await client.get("a")).status is JobStatus.RUNNING


async def test_a_slow_answer_is_an_answer(ray: FakeRay, client: JobsClient) -> None:
    ray.faults.add(Fault("GET", "/api/version", kind=Kind.SLOW, delay=0.1))
    assert (await client.version()).session_name == ray.session_name


async def test_a_hanging_submission_may_arrive_after_its_client_has_gone(
    ray: FakeRay, client: JobsClient
) -> None:
    ray.faults.add(Fault(*SUBMIT, kind=Kind.HANG))
    hanging = asyncio.create_task(client.submit(REQUEST))
    await wait_until(lambda: ray.requests.in_flight, description="the submission arrives")
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    with pytest.raises(JobNotFound):
        await client.get("a")
    ray.faults.release()
    await wait_until(lambda: "a" in ray.jobs, description="Ray takes the submission after all")


async def test_an_unreachable_head_comes_back_with_its_jobs(
    ray: FakeRay, client: JobsClient
) -> None:
    ray.add_job("a")
    before = await client.version()
    await ray.stop_listening()
    for request in (client.get("a"), client.submit(REQUEST)):
        with pytest.raises(ClusterUnreachable):
            await request
    await ray.listen_again()
    assert (await client.get("a")).submission_id == "a"
    assert (await client.version()).session_name == before.session_name


async def test_a_head_that_forgets_has_a_new_session(ray: FakeRay, client: JobsClient) -> None:
    ray.add_job("a")
    before = await client.version()
    ray.restart(new_session=False)
    assert (await client.get("a")).submission_id == "a"
    ray.restart(new_session=True)
    with pytest.raises(JobNotFound):
        await client.get("a")
    assert (await client.version()).session_name != before.session_name


async def test_a_timeline_moves_a_job(ray: FakeRay, client: JobsClient) -> None:
    steps = [(0.0, "PENDING"), (0.05, "RUNNING"), (0.1, "FAILED")]
    ray.on_submit = Timeline(steps, message="lost", error_type="JOB_SUPERVISOR_ACTOR_DIED")
    await client.submit(REQUEST)
    assert ray.jobs["a"].status == "PENDING"
    await wait_until(lambda: ray.jobs["a"].is_terminal, description="the timeline ends")
    job = await client.get("a")
    assert (job.status, job.message) == ("FAILED", "lost")
    assert (job.error_type, job.driver_exit_code) == ("JOB_SUPERVISOR_ACTOR_DIED", None)


async def test_a_pending_job_that_was_asked_to_stop_stops_once_it_starts(
    ray: FakeRay, client: JobsClient
) -> None:
    job = ray.add_job("a", "PENDING")
    assert await client.stop("a") is True
    assert (await client.get("a")).status is JobStatus.PENDING
    job.set("RUNNING")
    await wait_until(lambda: job.status == "STOPPED", description="the stop takes effect")
    assert await client.stop("a") is False
    assert job.stop_requests == 2


async def test_a_driver_is_listed_and_may_not_be_stopped(ray: FakeRay, client: JobsClient) -> None:
    ray.add_job("a")
    ray.add_driver("01000000")
    assert [job.type for job in await client.list()] == ["SUBMISSION", "DRIVER"]
    with pytest.raises(JobsApiError, match="Can only stop submission type jobs"):
        await client.stop("01000000")


async def test_the_fake_counts_what_it_is_asked(ray: FakeRay, client: JobsClient) -> None:
    ray.add_job("a")
    ray.add_job("b")
    ray.faults.add(Fault("GET", "/api/jobs/.", kind=Kind.HANG, times=2))
    asked = asyncio.gather(client.get("a"), client.get("b"))
    await wait_until(lambda: ray.requests.in_flight == 2, description="both requests hang")
    ray.faults.release()
    await asked
    assert sorted(ray.requests) == [("GET", "/api/jobs/a"), ("GET", "/api/jobs/b")]
    assert ray.requests.by_kind == {"GET /api/jobs/{id}": 2}
    assert ray.requests.number_of("GET", "/a$") == 1
    assert ray.requests.max_in_flight == 2


@pytest.mark.parametrize("kind", [JobsClient, LogsClient])
async def test_a_replaced_connection_is_closed_once_its_requests_are_over(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, kind: type[JobsClient | LogsClient]
) -> None:
    """Each renewal of a token left one open for as long as its cluster was."""
    made: list[httpx.AsyncClient] = []

    async def noted(connection: Connection, **options: Any) -> httpx.AsyncClient:
        made.append(await open_http(connection, **options))
        return made[-1]

    async def ask(client: JobsClient | LogsClient) -> None:
        if isinstance(client, JobsClient):
            await client.get("a")
        else:
            await client.from_dashboard("0" * 56, log_file_name("a"), lines=1, skip=0, room=9)

    monkeypatch.setattr(http, "open_http", noted)
    ray.add_job("a").print(b"line\n")
    ray.faults.add(Fault("GET", "", kind=Kind.HANG))
    async with kind(Connection(ray.address)) as client:
        request = asyncio.create_task(ask(client))
        await wait_until(lambda: ray.requests.in_flight, description="a request hangs")
        for token in "bc":
            await client.reconnect(Connection(ray.address, TokenSource(literal=token)))
            await ask(client)
        assert [each.is_closed for each in made] == [False, True, False]
        ray.faults.release()
        await request
        assert [each.is_closed for each in made] == [True, True, False]
    assert all(each.is_closed for each in made)
