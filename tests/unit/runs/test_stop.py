"""`stop_and_confirm` against a fake head: accepted is never done."""

import math

import anyio
import pytest

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.runs.stop import Stopping, stop_and_confirm
from prefect_ray_worker.runs.timing import Timing
from tests.fake_ray import FakeRay, Fault, Kind
from tests.waiting import wait_until

STOP = ("POST", "/stop$")
TIMING = Timing(stop_poll=0.05, stop_confirm=0.8, stop_queued=0.3)


async def stop(client: JobsClient, grace: float = 0.2) -> Stopping:
    with anyio.fail_after(5):
        return await stop_and_confirm(client, "a", grace_seconds=grace, timing=TIMING)


async def test_a_running_job_has_ended_when_it_says_so(ray: FakeRay, client: JobsClient) -> None:
    ray.stop_seconds = 0.4
    job = ray.add_job("a")
    assert await stop(client, grace=2) is Stopping.ENDED
    assert job.status == "STOPPED"
    assert job.stop_requests == 1


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
async def test_a_job_that_has_ended_is_not_asked(
    ray: FakeRay, client: JobsClient, status: str
) -> None:
    job = ray.add_job("a", status)
    assert await stop(client) is Stopping.ENDED
    assert (job.status, job.stop_requests) == (status, 0)


async def test_stopping_again_and_again_does_no_harm(ray: FakeRay, client: JobsClient) -> None:
    job = ray.add_job("a")
    assert {await stop(client) for _ in range(3)} == {Stopping.ENDED}
    assert job.stop_requests == 1


async def test_a_job_that_nobody_knows_is_gone(client: JobsClient) -> None:
    assert await stop(client) is Stopping.GONE


async def test_a_job_that_is_deleted_meanwhile_is_gone(ray: FakeRay, client: JobsClient) -> None:
    ray.stop_seconds = math.inf
    job = ray.add_job("a")
    async with anyio.create_task_group() as tasks:

        async def delete() -> None:
            await wait_until(lambda: job.stop_requests, description="the job is asked to stop")
            del ray.jobs["a"]

        tasks.start_soon(delete)
        assert await stop(client) is Stopping.GONE


async def test_an_ingress_without_a_backend_is_not_gone(ray: FakeRay, client: JobsClient) -> None:
    ray.add_job("a")
    ray.faults.add(
        Fault("*", "", kind=Kind.STATUS, status=404, body="default backend - 404", times=None)
    )
    assert await stop(client) is Stopping.UNREACHABLE


async def test_a_pending_job_is_queued_and_stops_as_it_starts(
    ray: FakeRay, client: JobsClient
) -> None:
    job = ray.add_job("a", "PENDING")
    began = anyio.current_time()
    assert await stop(client, grace=60) is Stopping.QUEUED
    assert anyio.current_time() - began < 2, "its grace is for a driver, and there is none"
    assert job.stop_requests == 1
    job.set("RUNNING")
    await wait_until(lambda: job.status == "STOPPED", description="the queued stop works")


async def test_a_pending_job_that_starts_meanwhile_is_followed_to_its_end(
    ray: FakeRay, client: JobsClient
) -> None:
    job = ray.add_job("a", "PENDING")
    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            await wait_until(lambda: job.stop_requests, description="the job is asked to stop")
            job.set("RUNNING")

        tasks.start_soon(start)
        assert await stop(client) is Stopping.ENDED


async def test_a_pending_job_whose_stop_was_never_heard_is_not_queued(
    ray: FakeRay, client: JobsClient
) -> None:
    """The look-ups work and the stops do not: nothing is queued at Ray then."""
    ray.add_job("a", "PENDING")
    ray.faults.add(Fault(*STOP, kind=Kind.STATUS, status=503, times=None))
    assert await stop(client) in (Stopping.UNREACHABLE, Stopping.UNCONFIRMED)
    assert ray.jobs["a"].stop_requests == 0


async def test_a_job_that_will_not_die_is_unconfirmed(ray: FakeRay, client: JobsClient) -> None:
    ray.stop_seconds = math.inf
    job = ray.add_job("a")
    assert await stop(client) is Stopping.UNCONFIRMED
    assert job.status == "RUNNING"
    assert job.stop_requests == 1


async def test_a_grace_is_waited_out(ray: FakeRay, client: JobsClient) -> None:
    ray.stop_seconds = 1.2
    ray.add_job("a")
    assert await stop(client, grace=1) is Stopping.ENDED


async def test_a_head_that_is_away_is_unreachable(ray: FakeRay, client: JobsClient) -> None:
    ray.add_job("a")
    await ray.stop_listening()
    assert await stop(client) is Stopping.UNREACHABLE


async def test_a_head_that_goes_away_after_the_stop_is_unreachable(
    ray: FakeRay, client: JobsClient
) -> None:
    """The stop was accepted, the end was never seen."""
    ray.stop_seconds = math.inf
    job = ray.add_job("a")
    async with anyio.create_task_group() as tasks:

        async def leave() -> None:
            await wait_until(lambda: job.stop_requests, description="the job is asked to stop")
            await ray.stop_listening()

        tasks.start_soon(leave)
        assert await stop(client) is Stopping.UNREACHABLE


async def test_a_head_that_comes_back_is_asked_to_stop(ray: FakeRay, client: JobsClient) -> None:
    job = ray.add_job("a")
    ray.faults.add(Fault("*", "", kind=Kind.STATUS, status=503, times=3))
    assert await stop(client) is Stopping.ENDED
    assert job.stop_requests == 1


@pytest.mark.parametrize("kind", [Kind.DROP, Kind.ACT_THEN_DROP, Kind.HALF_BODY, Kind.ACT_THEN_500])
async def test_a_stop_without_an_answer_is_repeated(
    ray: FakeRay, client: JobsClient, kind: Kind
) -> None:
    ray.stop_seconds = 0.5
    job = ray.add_job("a")
    fault = ray.faults.add(Fault(*STOP, kind=kind))
    assert await stop(client, grace=1) is Stopping.ENDED
    assert fault.hits == 1
    assert job.stop_requests == (1 if kind is Kind.DROP else 2)


async def test_a_token_that_is_refused_is_unreachable(ray: FakeRay, client: JobsClient) -> None:
    ray.add_job("a")
    ray.faults.add(Fault("*", "", kind=Kind.STATUS, status=401, times=None))
    assert await stop(client) is Stopping.UNREACHABLE
