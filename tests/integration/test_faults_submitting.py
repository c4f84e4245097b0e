"""Trouble while a run is submitted: one job, no false crash, and no other run disturbed."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker import submission
from prefect_ray_worker.blocks import RayCluster
from tests.fake_ray import FakeRay, Fault, Kind
from tests.integration.stage import Stage
from tests.ports import free_port
from tests.waiting import wait_until

SUBMIT = ("POST", "/api/jobs/$")
PATIENCE = submission.submit_once.__kwdefaults__ or {}


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
    monkeypatch.setitem(PATIENCE, "patience", 1.5)
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
    monkeypatch.setitem(PATIENCE, "patience", 1.0)
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
async def unsettled(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Submissions that never arrive, and leave that open; `faults.clear()` ends it."""
    monkeypatch.setitem(PATIENCE, "patience", 0.5)
    stage.ray.faults.add(Fault("POST", "/api/jobs/$", kind=Kind.DROP, times=None))
    stage.ray.faults.add(Fault("GET", "/api/jobs/", kind=Kind.DROP, times=None))
    async with stage.pool.working():
        yield stage


async def test_unsettled_that_never_arrived_is_submitted_again(unsettled: Stage) -> None:
    run_id = await unsettled.start()
    await unsettled.pool.wait_for_log(run_id, "may have been taken")
    unsettled.ray.faults.clear()
    await unsettled.job_of(run_id)
    await unsettled.pool.wait_for_log(run_id, "is RUNNING")
    assert len(unsettled.jobs_of(run_id)) == 1


async def test_unsettled_and_taken_at_last_is_lost_and_not_run_twice(unsettled: Stage) -> None:
    """From the answer to the second submission on, a missing job has run and is not repeated."""
    run_id = await unsettled.start()
    await unsettled.pool.wait_for_log(run_id, "may have been taken")
    # Ray takes the second submission, and its head restarts before anybody has seen the job.
    taken: list[str] = []

    def forgotten(job: object) -> object:
        taken.append(getattr(job, "submission_id", ""))
        asyncio.get_running_loop().call_soon(unsettled.ray.jobs.clear)
        return unsettled_runs

    unsettled_runs = unsettled.ray.on_submit
    unsettled.ray.on_submit = forgotten  # type: ignore[assignment]
    unsettled.ray.faults.clear()
    await unsettled.ends(run_id, StateType.CRASHED, "lost the job")
    assert len(taken) == 1


async def test_unsettled_and_refused_at_last_is_crashed(unsettled: Stage) -> None:
    """The cluster answers again, does not have the job and will not take it: that is settled."""
    run_id = await unsettled.start()
    await unsettled.pool.wait_for_log(run_id, "may have been taken")
    unsettled.ray.faults.clear()
    unsettled.ray.faults.add(
        Fault(*SUBMIT, kind=Kind.STATUS, status=400, body="TypeError: no such key", times=None)
    )
    await unsettled.ends(run_id, StateType.CRASHED, "no such key")


async def test_unsettled_and_taken_by_somebody_else_is_crashed(unsettled: Stage) -> None:
    run_id = await unsettled.start()
    await unsettled.pool.wait_for_log(run_id, "may have been taken")
    unsettled.ray.faults.clear()
    # Not there when the worker looks, there when it submits.
    unsettled.ray.faults.add(
        Fault(*SUBMIT, kind=Kind.STATUS, status=500, body="ValueError: Job already exists")
    )
    hidden = unsettled.ray.faults.add(
        Fault("GET", "/api/jobs/.", kind=Kind.STATUS, status=404, body="Job a does not exist")
    )
    unsettled.ray.faults.add(
        Fault("GET", "/api/jobs/.", kind=Kind.STATUS, status=200, times=None,
              content_type="application/json", body='{"status": "RUNNING", "metadata": {}}')
    )  # fmt: skip
    await unsettled.ends(run_id, StateType.CRASHED, "belongs to something else")
    assert hidden.hits == 1


@pytest.mark.parametrize(
    "meanwhile",
    [StateType.CANCELLING, StateType.CANCELLED, StateType.FAILED, StateType.SCHEDULED],
)
async def test_unsettled_and_settled_in_prefect_meanwhile_is_not_submitted(
    unsettled: Stage, meanwhile: StateType
) -> None:
    """A run that is over, or has a next attempt, must not start from a forgotten submission."""
    run_id = await unsettled.start()
    await unsettled.pool.wait_for_log(run_id, "may have been taken")
    job_id = (await unsettled.pool.read(run_id)).infrastructure_pid or ""
    await unsettled.play(run_id, meanwhile)
    unsettled.ray.faults.clear()
    if meanwhile is StateType.CANCELLING:
        await unsettled.ends(run_id, StateType.CANCELLED)
    elif meanwhile is StateType.SCHEDULED:
        job = await unsettled.job_of(run_id)
        assert f"/{job.submission_id}" not in job_id, "the next attempt has an id of its own"
    await unsettled.is_served()
    jobs = unsettled.jobs_of(run_id)
    assert len(jobs) == (1 if meanwhile is StateType.SCHEDULED else 0)
    assert all(f"/{job.submission_id}" not in job_id for job in jobs)


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
        assert guarded.requests.number_of("POST") == 1
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
        assert page.hits <= 2
        stage.ray.faults.clear()
        await stage.is_served()


async def test_label_selector_that_ray_refuses_crashes_at_once(stage: Stage) -> None:
    async with stage.pool.working():
        run_id = await stage.start(entrypoint_label_selector={"-bad-": "x"})
        await stage.ends(run_id, StateType.CRASHED, "Invalid label key name")
        await wait_until(lambda: stage.ray.requests, description="a request")
    assert stage.ray.jobs == {}
