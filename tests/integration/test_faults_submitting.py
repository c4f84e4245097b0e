"""Trouble while a run is submitted: one job, no false crash, and no other run disturbed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.shared.ids import InfrastructurePid
from tests.fake_ray import FakeJob, FakeRay, Fault, Kind, Timeline
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import set_timing
from tests.integration.stage import Stage
from tests.ports import free_port
from tests.waiting import wait_until

SUBMIT = ("POST", "/api/jobs/$")


@pytest.mark.parametrize("kind", [Kind.ACT_THEN_DROP, Kind.ACT_THEN_500])
async def test_taken_but_not_confirmed_is_one_job_and_goes_on(stage: Stage, kind: Kind) -> None:
    stage.ray.faults.add(Fault(*SUBMIT, kind=kind))
    async with stage.pool.working():
        run_id, job = await stage.running()
        run = await stage.pool.read(run_id)
        assert f"/api/jobs/{job.submission_id}#" in (run.infrastructure_pid or "")
        await stage.play(run_id, StateType.COMPLETED)
        job.set("SUCCEEDED")
        await stage.pool.wait_for_log(run_id, "is SUCCEEDED")
    assert len(stage.jobs_of(run_id)) == 1
    await stage.ends(run_id, StateType.COMPLETED)


async def test_head_that_is_down_for_a_while_gets_the_run_later(stage: Stage) -> None:
    await stage.ray.stop_listening()
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "has not confirmed the job yet")
        assert await stage.pool.state(run_id) == StateType.PENDING
        await stage.ray.listen_again()
        await stage.job_of(run_id)
        await stage.pool.wait_for_log(run_id, "is RUNNING")
        assert await stage.pool.state(run_id) == StateType.PENDING


async def test_head_that_stays_down_crashes_the_run_and_no_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_timing(monkeypatch, submit_patience=1.5)
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with stage.pool.working():
        run_id = await stage.start(address=nowhere)
        await stage.is_served()
        run = await stage.ends(run_id, StateType.CRASHED, nowhere)
        assert run.state is not None
        assert "Check that its dashboard runs" in (run.state.message or "")


async def test_unsettled_is_pending_until_the_cluster_can_be_asked(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray took the job, said nothing and went away: it is found when the head answers."""
    set_timing(monkeypatch, submit_patience=1.0)
    stage.ray.faults.add(Fault(*SUBMIT, kind=Kind.ACT_THEN_DROP))
    hidden = stage.ray.faults.add(Fault("GET", "/api/jobs/", kind=Kind.DROP, times=None))
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "may have been taken")
        assert hidden.hits
        assert await stage.pool.state(run_id) == StateType.PENDING
        stage.ray.faults.clear()
        await stage.pool.wait_for_log(run_id, "is RUNNING")
        assert len(stage.jobs_of(run_id)) == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timing(monkeypatch, submit_patience=0.5)


@asynccontextmanager
async def unsettled(stage: Stage) -> AsyncIterator[UUID]:
    """A run whose submission never arrived, which is open until `faults.clear()`."""
    stage.ray.faults.add(Fault("POST", "/api/jobs/$", kind=Kind.DROP, times=None))
    stage.ray.faults.add(Fault("GET", "/api/jobs/", kind=Kind.DROP, times=None))
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "may have been taken")
        yield run_id


@pytest.mark.usefixtures("impatient")
async def test_unsettled_that_never_arrived_is_submitted_again(stage: Stage) -> None:
    async with unsettled(stage) as run_id:
        stage.ray.faults.clear()
        await stage.pool.wait_for_log(run_id, "is RUNNING")
        assert len(stage.jobs_of(run_id)) == 1


async def test_looks_from_before_the_second_submission_do_not_count(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that waited for its agent took the job late; a look from before made it lost."""
    set_timing(monkeypatch, submit_patience=3.0)
    async with unsettled(stage) as run_id:
        slow = stage.ray.faults.add(Fault(*SUBMIT, kind=Kind.SLOW, delay=1.5))
        stage.ray.faults.keep_last()
        await wait_until(lambda: slow.hits, description="the second submission")
        stage.ray.requests.reset()
        await stage.pool.wait_for_log(run_id, "is RUNNING")
        assert stage.ray.requests.number_of("GET") >= 2, "it was looked for meanwhile"
        assert len(stage.jobs_of(run_id)) == 1
        assert await stage.pool.state(run_id) == StateType.PENDING


@pytest.mark.usefixtures("impatient")
async def test_unsettled_and_taken_at_last_is_lost_and_not_run_twice(stage: Stage) -> None:
    """Once Ray has answered a submission, a missing job may have run and is not repeated."""
    async with unsettled(stage) as run_id:

        def forget_at_once(_: FakeJob) -> Timeline:
            asyncio.get_running_loop().call_soon(stage.ray.jobs.clear)
            return RUNS_FOREVER

        stage.ray.on_submit = forget_at_once
        stage.ray.requests.reset()
        stage.ray.faults.clear()
        await stage.ends(run_id, StateType.CRASHED, "lost the job")
        assert stage.ray.requests.number_of("POST") == 1


@pytest.mark.usefixtures("impatient")
async def test_unsettled_and_refused_at_last_is_crashed(stage: Stage) -> None:
    """The cluster answers again, does not have the job and will not take it: that is settled."""
    async with unsettled(stage) as run_id:
        stage.ray.faults.add(
            Fault(*SUBMIT, kind=Kind.STATUS, status=400, body="TypeError: bad key", times=None)
        )
        stage.ray.faults.keep_last()
        await stage.ends(run_id, StateType.CRASHED, "bad key")


@pytest.mark.usefixtures("impatient")
async def test_unsettled_and_taken_by_somebody_else_is_crashed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign job turns up under the id between the look and the submission."""
    set_timing(monkeypatch, submit_patience=2.0)
    async with unsettled(stage) as run_id:
        pid = (await stage.pool.read(run_id)).infrastructure_pid or ""
        fault = Fault(*SUBMIT, kind=Kind.SLOW, delay=0.5)
        stage.ray.faults.add(fault)
        stage.ray.faults.keep_last()
        await wait_until(lambda: fault.hits, description="the second submission")
        stage.ray.add_job(InfrastructurePid.parse(pid).submission_id)
        await stage.ends(run_id, StateType.CRASHED, "belongs to something else")


@pytest.mark.usefixtures("impatient")
async def test_cluster_that_answers_and_never_takes_the_job_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that answers 500 to every submission for ever must not keep a run Pending for ever."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_UNREACHABLE_LIMIT_SECONDS", "2")
    stage.ray.faults.add(Fault(*SUBMIT, kind=Kind.STATUS, status=500, body="No agent", times=None))
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.ends(run_id, StateType.CRASHED, "has not taken the job")
        await stage.pool.wait_for_log(run_id, "No agent")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("meanwhile", "end"),
    [
        pytest.param(StateType.CANCELLING, StateType.CANCELLED, marks=pytest.mark.extra),
        pytest.param(StateType.CANCELLED, StateType.CANCELLED, marks=pytest.mark.extra),
        pytest.param(StateType.FAILED, StateType.FAILED, marks=pytest.mark.extra),
        (StateType.RUNNING, StateType.CRASHED),
    ],
)
async def test_unsettled_and_not_waiting_any_more_is_not_submitted(
    stage: Stage, meanwhile: StateType, end: StateType
) -> None:
    """A run that is over, or has been running, must not start from a forgotten submission."""
    async with unsettled(stage) as run_id:
        await stage.play(run_id, meanwhile)
        stage.ray.faults.clear()
        await stage.ends(run_id, end)
        await stage.is_served()
        assert stage.jobs_of(run_id) == []


@pytest.mark.usefixtures("impatient")
async def test_unsettled_and_scheduled_again_is_submitted_as_the_new_attempt_only(
    stage: Stage,
) -> None:
    async with unsettled(stage) as run_id:
        first = (await stage.pool.read(run_id)).infrastructure_pid or ""
        await stage.play(run_id, StateType.SCHEDULED)
        stage.ray.faults.clear()
        job = await stage.job_of(run_id)
        await stage.is_served()
        assert stage.jobs_of(run_id) == [job]
        assert InfrastructurePid.parse(first).submission_id != job.submission_id


async def test_wrong_token_crashes_at_once_and_shows_no_secret(stage: Stage) -> None:
    async with FakeRay(token="right-s3cret") as guarded:
        block = RayCluster(
            address=guarded.address, token="wrong-s3cret", headers={"X-Key": "header-s3cret"}
        )
        document = await block.save(f"guarded-{uuid4().hex[:6]}")
        async with stage.pool.working():
            run_id = await stage.start(
                address=None, cluster={"$ref": {"block_document_id": str(document)}}
            )
            run = await stage.ends(run_id, StateType.CRASHED, "Set the token of the `cluster`")
            await stage.pool.wait_for_log(run_id, "Failed to submit")
        assert len(guarded.requests) <= 3, "nothing is repeated"
    said = "\n".join([*(await stage.pool.logs(run_id)), str(run.state)])
    assert "s3cret" not in said


async def test_tls_failure_crashes_at_once_and_says_what_to_do(stage: Stage) -> None:
    address = stage.ray.address.replace("http://", "https://")
    async with stage.pool.working():
        run_id = await stage.start(address=address)
        await stage.ends(run_id, StateType.CRASHED, "check the scheme")


async def test_login_page_crashes_at_once_and_says_what_to_do(stage: Stage) -> None:
    page = stage.ray.faults.add(Fault("*", "", kind=Kind.LOGIN_PAGE, times=None))
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.ends(run_id, StateType.CRASHED, "does not answer as a Ray dashboard")
        assert page.hits <= 3, "nothing is repeated"
        stage.ray.faults.clear()
        await stage.is_served()


async def test_label_selector_that_ray_refuses_crashes_at_once(stage: Stage) -> None:
    async with stage.pool.working():
        run_id = await stage.start(entrypoint_label_selector={"-bad-": "x"})
        await stage.ends(run_id, StateType.CRASHED, "Invalid label key name")
        await wait_until(lambda: stage.ray.requests, description="a request")
    assert stage.ray.jobs == {}
