"""`submit_once` against a head that misbehaves: one job, and no verdict before it is settled."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import anyio
import httpx
import pytest

from prefect_ray_worker.errors import (
    ClusterUnreachable,
    NotAuthorized,
    NotRayDashboard,
    RequestRejected,
    SubmissionConflict,
)
from prefect_ray_worker.ray_api import client as client_module
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.runs.submit import Disposition, submit_once
from prefect_ray_worker.runs.timing import Timing
from tests.fake_ray import FakeRay, Fault, Kind
from tests.waiting import wait_until

RUN = uuid4()
SUBMIT = ("POST", "/api/jobs/$")
READ_BACK = ("GET", "/api/jobs/.")


def request_of(run_id: UUID = RUN, **fields: object) -> JobSubmitRequest:
    return JobSubmitRequest.model_validate(
        {
            "entrypoint": "true",
            "submission_id": "a",
            "runtime_env": {},
            "metadata": {"prefect.io/flow-run-id": str(run_id)},
            **fields,
        }
    )


async def submit(
    client: JobsClient,
    request: JobSubmitRequest | None = None,
    *,
    turns: anyio.CapacityLimiter | None = None,
    patience: float = 5,
    told: list[str] | None = None,
) -> Disposition:
    said = told if told is not None else []
    return await submit_once(
        client,
        request or request_of(),
        flow_run_id=RUN,
        turns=turns or anyio.CapacityLimiter(1),
        report=said.append,
        # Production waits 1 s, 2 s, 4 s…; the rules are the same with milliseconds.
        timing=Timing(first_pause=0.05, submit_patience=patience),
    )


async def test_plain(ray: FakeRay, client: JobsClient) -> None:
    told: list[str] = []
    assert await submit(client, told=told) is Disposition.SUBMITTED
    assert list(ray.jobs) == ["a"]
    assert told == []
    assert ray.requests.by_kind == {"POST /api/jobs/": 1}


async def test_our_own_job_under_the_id_is_adopted(ray: FakeRay, client: JobsClient) -> None:
    ray.add_job("a", metadata=request_of().metadata)
    assert await submit(client) is Disposition.ADOPTED
    assert list(ray.jobs) == ["a"]


@pytest.mark.parametrize("metadata", [None, {}, {"prefect.io/flow-run-id": str(uuid4())}])
async def test_a_foreign_job_under_the_id_is_a_conflict(
    ray: FakeRay, client: JobsClient, metadata: dict[str, str] | None
) -> None:
    foreign = ray.add_job("a", metadata=metadata)
    with pytest.raises(SubmissionConflict, match="belongs to something else"):
        await submit(client)
    assert ray.jobs == {"a": foreign}
    assert foreign.stop_requests == 0


@pytest.mark.parametrize("kind", [Kind.ACT_THEN_DROP, Kind.ACT_THEN_500, Kind.HALF_BODY])
@pytest.mark.parametrize("broken_reads", [0, 3])
async def test_taken_but_not_confirmed_is_adopted(
    ray: FakeRay, client: JobsClient, kind: Kind, broken_reads: int
) -> None:
    told: list[str] = []
    ray.faults.add(Fault(*SUBMIT, kind=kind))
    ray.faults.add(Fault(*READ_BACK, kind=Kind.DROP, times=broken_reads))
    assert await submit(client, told=told) is Disposition.ADOPTED
    assert list(ray.jobs) == ["a"]
    assert len(told) == (1 if broken_reads else 0), told


@pytest.mark.parametrize(
    "fault",
    [
        Fault(*SUBMIT, kind=Kind.DROP, times=2),
        Fault(*SUBMIT, kind=Kind.STATUS, status=503, times=3),
        Fault("*", "", kind=Kind.STATUS, status=502, times=6),
        Fault(*SUBMIT, kind=Kind.STATUS, status=500, body="No available agent", times=2),
    ],
    ids=["dropped", "503", "502 everywhere", "500"],
)
async def test_not_taken_is_submitted_again(ray: FakeRay, client: JobsClient, fault: Fault) -> None:
    told: list[str] = []
    ray.faults.add(fault)
    assert await submit(client, told=told) is Disposition.SUBMITTED
    assert list(ray.jobs) == ["a"]
    assert len(told) == 1, "one line, not one for each attempt"


async def test_a_burst_waits_for_its_turn_without_losing_patience(
    ray: FakeRay, client: JobsClient
) -> None:
    """A head that is busy with the others is not one that does not answer."""
    ray.faults.add(Fault(*SUBMIT, kind=Kind.SLOW, delay=0.4, times=None))
    turns = anyio.CapacityLimiter(2)
    settled: list[Disposition] = []

    async def one(number: int) -> None:
        request = request_of(submission_id=f"burst-{number}")
        settled.append(await submit(client, request, turns=turns, patience=1.5))

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(one, number)
    assert settled == [Disposition.SUBMITTED] * 12, "the last ones waited for 2 s"
    assert ray.requests.max_in_flight == 2


async def test_a_submission_that_hangs_and_arrives_late_is_one_job(
    ray: FakeRay, client: JobsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first POST times out, a second one wins, and then the first one arrives after all."""
    monkeypatch.setattr(client_module, "_SUBMIT_TIMEOUT", httpx.Timeout(0.2))
    ray.faults.add(Fault(*SUBMIT, kind=Kind.HANG))
    assert await submit(client) is Disposition.SUBMITTED
    taken = ray.jobs["a"]
    ray.faults.release()
    await wait_until(lambda: not ray.requests.in_flight, description="the late POST is answered")
    assert ray.jobs == {"a": taken}


async def test_a_submission_that_hangs_past_the_patience_is_unsettled(
    ray: FakeRay, client: JobsClient
) -> None:
    ray.faults.add(Fault(*SUBMIT, kind=Kind.HANG))
    assert await submit(client, patience=0.3) is Disposition.UNSETTLED
    assert ray.jobs == {}
    ray.faults.release()
    await wait_until(lambda: ray.jobs, description="Ray takes it after all")
    assert await submit(client) is Disposition.ADOPTED
    assert list(ray.jobs) == ["a"]


async def test_a_head_that_is_back_in_time_gets_the_job(ray: FakeRay, client: JobsClient) -> None:
    told: list[str] = []
    await ray.stop_listening()
    async with asyncio.TaskGroup() as tasks:
        submitting = tasks.create_task(submit(client, told=told))
        await wait_until(lambda: told, description="the first attempt fails")
        await ray.listen_again()
    assert submitting.result() is Disposition.SUBMITTED
    assert list(ray.jobs) == ["a"]
    assert ray.address in told[0]


async def test_a_head_that_stays_away_is_an_error_after_the_patience(
    ray: FakeRay, client: JobsClient
) -> None:
    await ray.stop_listening()
    began = anyio.current_time()
    with pytest.raises(ClusterUnreachable, match=ray.address):
        await submit(client, patience=0.5)
    assert anyio.current_time() - began <= 0.6
    await ray.listen_again()
    await asyncio.sleep(0.1)
    assert ray.jobs == {}, "given up is given up"


@contextmanager
def black_hole() -> Iterator[str]:
    """An address where connecting never comes to an end, as behind a dropping firewall."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        try:
            yield f"http://127.0.0.1:{full.getsockname()[1]}"
        finally:
            for one in waiting:
                one.close()


async def test_an_address_that_swallows_connections_is_an_error_and_not_unsettled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing can have arrived: the run must not wait for a job that cannot exist."""
    monkeypatch.setattr(client_module, "_SUBMIT_TIMEOUT", httpx.Timeout(10, connect=0.25))
    with black_hole() as address:
        async with JobsClient(Connection(address)) as client:
            for patience in (0.5, 0.7, 0.9, 1.1):
                with pytest.raises(ClusterUnreachable, match="ConnectTimeout"):
                    await submit(client, patience=patience)


async def test_unclear_and_then_silent_is_unsettled_and_no_error(
    ray: FakeRay, client: JobsClient
) -> None:
    """The first POST may have arrived, and no later refusal takes that back."""
    ray.faults.add(Fault(*SUBMIT, kind=Kind.ACT_THEN_DROP))
    ray.faults.add(Fault(*READ_BACK, kind=Kind.DROP, times=None))
    async with asyncio.TaskGroup() as tasks:
        submitting = tasks.create_task(submit(client, patience=0.6))
        await wait_until(lambda: "a" in ray.jobs, description="Ray takes the job")
        await ray.stop_listening()
    assert submitting.result() is Disposition.UNSETTLED
    assert list(ray.jobs) == ["a"]


@pytest.mark.parametrize(
    "after",
    [
        Fault("*", "", kind=Kind.LOGIN_PAGE, times=None),
        Fault("*", "", kind=Kind.REDIRECT, times=None),
        Fault("*", "", kind=Kind.STATUS, status=401, times=None),
        Fault("*", "", kind=Kind.STATUS, status=404, body="default backend", times=None),
        Fault("*", "", kind=Kind.STATUS, status=413, times=None),
    ],
    ids=["login page", "redirect", "401", "ingress without backend", "413"],
)
async def test_unclear_and_then_refused_is_unsettled_and_no_error(
    ray: FakeRay, client: JobsClient, after: Fault
) -> None:
    """What a proxy says after an unclear POST proves nothing about the job that Ray may have."""
    ray.faults.add(Fault(*SUBMIT, kind=Kind.ACT_THEN_DROP))
    ray.faults.add(after)
    assert await submit(client, patience=0.5) is Disposition.UNSETTLED
    ray.faults.clear()
    assert list(ray.jobs) == ["a"]
    assert await submit(client) is Disposition.ADOPTED


async def test_unclear_and_then_refused_for_a_while_is_adopted(
    ray: FakeRay, client: JobsClient
) -> None:
    ray.faults.add(Fault(*SUBMIT, kind=Kind.ACT_THEN_500))
    ray.faults.add(Fault("*", "", kind=Kind.STATUS, status=403, times=4))
    assert await submit(client) is Disposition.ADOPTED
    assert list(ray.jobs) == ["a"]


async def test_a_bad_label_selector_is_refused_at_once(ray: FakeRay, client: JobsClient) -> None:
    with pytest.raises(RequestRejected, match="Invalid label key name"):
        await submit(client, request_of(entrypoint_label_selector={"-bad-": "x"}))
    assert ray.requests.by_kind == {"POST /api/jobs/": 1}
    assert ray.jobs == {}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("*", "", kind=Kind.LOGIN_PAGE, times=None), NotRayDashboard),
        (Fault("*", "", kind=Kind.REDIRECT, times=None), NotRayDashboard),
        (Fault("*", "", kind=Kind.STATUS, status=401, times=None), NotAuthorized),
        (Fault("*", "", kind=Kind.STATUS, status=403, times=None), NotAuthorized),
    ],
    ids=["login page", "redirect", "401", "403"],
)
async def test_a_clear_refusal_is_an_error_at_once(
    ray: FakeRay, client: JobsClient, fault: Fault, error: type[Exception]
) -> None:
    ray.faults.add(fault)
    with anyio.fail_after(2), pytest.raises(error):
        await submit(client)
    assert fault.hits == 1
    assert ray.jobs == {}


async def test_submitting_concurrently_makes_one_job(ray: FakeRay, client: JobsClient) -> None:
    async with JobsClient(Connection(ray.address)) as other:
        found = await asyncio.gather(*(submit(one) for one in (client, other) * 5))
    assert sorted(d.value for d in found) == ["adopted"] * 9 + ["submitted"]
    assert list(ray.jobs) == ["a"]


async def test_submitting_concurrently_through_trouble_makes_one_job(
    ray: FakeRay, client: JobsClient
) -> None:
    for kind in (Kind.ACT_THEN_DROP, Kind.DROP, Kind.STATUS, Kind.ACT_THEN_500, Kind.HALF_BODY):
        ray.faults.add(Fault(*SUBMIT, kind=kind))
        ray.faults.add(Fault(*READ_BACK, kind=kind))
    found = await asyncio.gather(*(submit(client) for _ in range(8)))
    assert set(found) <= {Disposition.ADOPTED, Disposition.SUBMITTED}
    assert list(ray.jobs) == ["a"]


async def test_a_job_deleted_between_the_refusal_and_the_read_is_submitted_again(
    ray: FakeRay, client: JobsClient
) -> None:
    ray.add_job("a", "SUCCEEDED", metadata=request_of().metadata)
    ray.faults.add(Fault(*READ_BACK, kind=Kind.SLOW, delay=0.2))
    async with asyncio.TaskGroup() as tasks:
        submitting = tasks.create_task(submit(client))
        await wait_until(
            lambda: ray.requests.number_of("GET", "/a$"), description="the job is read back"
        )
        del ray.jobs["a"]
    assert submitting.result() is Disposition.SUBMITTED
    assert list(ray.jobs) == ["a"]
