"""Trouble while a run's job is watched: silence is no death, and every end is settled."""

import asyncio
import math
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.schemas.actions import LogCreate
from prefect.client.schemas.objects import StateType
from prefect.states import AwaitingRetry

from prefect_ray_worker.shared.ids import attempt_in, overdue_label
from tests.fake_ray import Fault, Kind
from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.harness import set_timing
from tests.integration.stage import Stage
from tests.waiting import wait_until

S = StateType
LIMIT = "PREFECT_INTEGRATIONS_RAY_WORKER_UNREACHABLE_LIMIT_SECONDS"
SILENT = "The Ray cluster does not answer"

# The job's end, its exit code, the run's state then, the state and the message it ends with.
ENDS: dict[str, tuple[str, int | None, S, str | None, S, str]] = {
    "succeeded without a report": ("SUCCEEDED", 0, S.RUNNING, None, S.CRASHED, "without reporting"),
    "succeeded, still pending": ("SUCCEEDED", 0, S.PENDING, None, S.CRASHED, "without reporting"),
    "failed": ("FAILED", 3, S.RUNNING, None, S.CRASHED, "exit code 3"),
    "killed": ("FAILED", -9, S.RUNNING, None, S.CRASHED, "signal SIGKILL"),
    "stopped by somebody": ("STOPPED", None, S.RUNNING, None, S.CRASHED, "outside Prefect"),
    "failed after completing": ("FAILED", 1, S.COMPLETED, None, S.COMPLETED, ""),
    "failed after failing": ("FAILED", 1, S.FAILED, None, S.FAILED, ""),
    "stopped after completing": ("STOPPED", None, S.COMPLETED, None, S.COMPLETED, ""),
    "failed while cancelling": ("FAILED", 1, S.CANCELLING, None, S.CANCELLED, "has ended"),
    "succeeded while cancelling": ("SUCCEEDED", 0, S.CANCELLING, None, S.CANCELLED, "has ended"),
    "failed while paused in its process": ("FAILED", 1, S.PAUSED, None, S.CRASHED, "exit code 1"),
    "succeeded while suspended": ("SUCCEEDED", 0, S.PAUSED, "Suspended", S.PAUSED, ""),
}


async def test_every_end_of_a_job_settles_its_run(stage: Stage) -> None:
    """The table of the design, on one worker at once; what is settled then stays as it is."""
    async with stage.pool.working():
        runs = await stage.start_many(len(ENDS))
        for run_id, (end, code, state, name, _, _) in zip(runs, ENDS.values(), strict=True):
            job = await stage.job_of(run_id)
            await stage.pool.wait_for_log(run_id, "submitted to infrastructure")
            if state is not S.PENDING:  # which it is, and once more would be a new attempt
                await stage.play(run_id, state, name)
            job.set(end, driver_exit_code=code)
        for run_id, (end, _, _, _, settled, _) in zip(runs, ENDS.values(), strict=True):
            await stage.pool.wait_for_log(run_id, f"is {end}")
            await stage.pool.wait_for(run_id, settled)
        await stage.is_served()
        for run_id, (case, (*_, settled, text)) in zip(runs, ENDS.items(), strict=True):
            run = await stage.pool.read(run_id)
            assert run.state is not None, case
            assert run.state.type == settled, (case, run.state)
            assert text in (run.state.message or ""), (case, run.state)


async def test_run_that_awaits_its_retry_is_left_alone(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running()
        await stage.pool.client.set_flow_run_state(
            run_id, AwaitingRetry(scheduled_time=datetime.now(UTC) + timedelta(hours=1)), force=True
        )
        job.set("FAILED")
        await stage.pool.wait_for_log(run_id, "is FAILED")
        await stage.is_served()
        run = await stage.pool.read(run_id)
    assert run.state is not None
    assert (run.state.type, run.state.name) == (S.SCHEDULED, "AwaitingRetry")


async def test_run_timeout_is_final_although_the_driver_reschedules(stage: Stage) -> None:
    """With SIGTERM_BEHAVIOR=reschedule, the stop makes the driver schedule the run again."""
    stage.ray.stop_seconds = 3
    async with stage.pool.working():
        run_id, job = await stage.running(run_timeout_seconds=2)
        await wait_until(lambda: job.stop_requests, timeout=20, description="a stop")
        labels = (await stage.pool.read(run_id)).labels
        assert overdue_label(attempt_in(job.submission_id)) in labels, "the driver is told before"
        await stage.pool.client.set_flow_run_state(
            run_id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True
        )
        await stage.ends(run_id, StateType.CRASHED, "run_timeout_seconds")
    assert stage.jobs_of(run_id) == [job]


async def test_report_that_comes_within_the_grace_stands(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running()
        job.set("SUCCEEDED")
        await stage.pool.wait_for_log(run_id, "is SUCCEEDED")
        await stage.play(run_id, S.COMPLETED)
        await stage.is_served()
    assert await stage.pool.state(run_id) == S.COMPLETED


async def test_silence_is_no_death(stage: Stage) -> None:
    """One warning, the state stays, and the job's end is settled as soon as it is known."""
    async with stage.pool.working():
        run_id, job = await stage.running()
        await stage.ray.stop_listening()
        await stage.pool.wait_for_log(run_id, SILENT)
        await asyncio.sleep(1.5)
        assert await stage.pool.state(run_id) == S.RUNNING
        job.set("FAILED", driver_exit_code=5)
        await stage.ray.listen_again()
        await stage.pool.wait_for_log(run_id, "answers again")
        await stage.ends(run_id, S.CRASHED, "exit code 5")
        logs = await stage.pool.logs(run_id)
    assert sum(SILENT in line for line in logs) == 1
    assert sum("answers again" in line for line in logs) == 1


@pytest.mark.parametrize(
    "kind", [Kind.LOGIN_PAGE, pytest.param(Kind.STATUS, marks=pytest.mark.extra)]
)
async def test_refusals_while_watching_are_silence_too(stage: Stage, kind: Kind) -> None:
    """An expired token or a login page says nothing about the job."""
    async with stage.pool.working():
        run_id, job = await stage.running()
        stage.ray.faults.add(Fault("*", "", kind=kind, status=401, times=None))
        await stage.pool.wait_for_log(run_id, SILENT)
        assert await stage.pool.state(run_id) == S.RUNNING
        stage.ray.faults.clear()
        await stage.pool.wait_for_log(run_id, "answers again")
        await stage.play(run_id, S.COMPLETED)
        job.set("SUCCEEDED")
        await stage.pool.wait_for_log(run_id, "is SUCCEEDED")


async def test_head_that_was_restarted_has_lost_the_job(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, _ = await stage.running()
        stage.ray.restart(new_session=True)
        await stage.ends(run_id, S.CRASHED, "head was restarted")
        await stage.is_served()
    assert stage.jobs_of(run_id) == [], "a run that was lost is not submitted again by itself"


async def test_head_that_was_restarted_and_remembers_goes_on(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running()
        await stage.ray.stop_listening()
        stage.ray.restart(new_session=False)
        await stage.pool.wait_for_log(run_id, SILENT)
        await stage.ray.listen_again()
        await stage.pool.wait_for_log(run_id, "answers again")
        await stage.play(run_id, S.COMPLETED)
        job.set("SUCCEEDED")
        await stage.pool.wait_for_log(run_id, "is SUCCEEDED")
    assert await stage.pool.state(run_id) == S.COMPLETED


async def test_deleted_record_is_lost(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, _ = await stage.running()
        stage.ray.jobs.clear()
        await stage.ends(run_id, S.CRASHED, "deleted its record")


async def test_cancelling_run_whose_job_is_lost_is_cancelled(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, _ = await stage.running()
        await stage.pool.cancel(run_id)
        stage.ray.jobs.clear()
        await stage.ends(run_id, S.CANCELLED)


async def test_silent_cluster_and_silent_run_is_crashed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "2")
    async with stage.pool.working():
        run_id, _ = await stage.running()
        await stage.ray.stop_listening()
        await stage.ends(run_id, S.CRASHED, "no sign of life")


async def test_cancelling_on_a_cluster_that_stays_away_ends_cancelled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cancels a run of a cluster that is gone wants it Cancelled, not Crashed."""
    monkeypatch.setenv(LIMIT, "2")
    async with stage.pool.working():
        run_id, _ = await stage.running()
        await stage.ray.stop_listening()
        await stage.pool.wait_for_log(run_id, SILENT)
        await stage.pool.cancel(run_id)
        await stage.ends(run_id, S.CANCELLED, "has not answered for 2 s")


async def test_silent_cluster_and_a_run_that_logs_is_left_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has lost sight of the cluster; the run goes on and tells Prefect so."""
    monkeypatch.setenv(LIMIT, "2")
    async with stage.pool.working():
        run_id, job = await stage.running()
        await stage.ray.stop_listening()
        for i in range(10):
            line = LogCreate(
                name="prefect.flow_runs", level=20, message=f"at work {i}",
                timestamp=datetime.now(UTC), flow_run_id=run_id,
            )  # fmt: skip
            await stage.pool.client.create_logs([line])
            await asyncio.sleep(0.5)
            assert await stage.pool.state(run_id) == S.RUNNING
        await stage.play(run_id, S.COMPLETED)
        job.set("SUCCEEDED")
        await stage.ray.listen_again()
        await stage.pool.wait_for_log(run_id, "is SUCCEEDED")
    assert await stage.pool.state(run_id) == S.COMPLETED


async def test_run_that_is_deleted_does_not_trouble_the_worker(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running()
        await stage.pool.client.delete_flow_run(run_id)
        await stage.is_served()
        job.set("FAILED")
        await stage.is_served()


async def test_head_that_hangs_is_silence(stage: Stage) -> None:
    """Requests that never come back neither end the run nor pile up."""
    async with stage.pool.working():
        run_id, job = await stage.running()
        stage.ray.faults.add(Fault("*", "", kind=Kind.HANG, times=None))
        await wait_until(lambda: stage.ray.requests.in_flight, description="a look hangs")
        await asyncio.sleep(1)
        assert stage.ray.requests.in_flight <= 2, "one look at the jobs, one at a log"
        stage.ray.faults.clear()
        job.set("FAILED", driver_exit_code=4)
        stage.ray.faults.release()
        await stage.ends(run_id, S.CRASHED, "exit code 4")


async def test_job_whose_queued_stop_was_forgotten_is_stopped_when_it_starts(stage: Stage) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    async with stage.pool.working():
        run_id = await stage.start()
        job = await stage.job_of(run_id)
        await stage.pool.wait_for_log(run_id, "is PENDING")
        await stage.pool.cancel(run_id)
        await stage.ends(run_id, S.CANCELLED, "queued the stop")
        asked = job.stop_requests
        assert asked
        job.forget_stop()
        job.set("RUNNING")
        await wait_until(lambda: job.status == "STOPPED", description="the job is stopped again")
        assert job.stop_requests == asked + 1


async def test_run_that_was_cancelled_can_be_run_again(stage: Stage) -> None:
    """What the worker knew of the first attempt's cancelling must not end the second."""
    stage.ray.on_submit = PENDING_FOREVER
    async with stage.pool.working():
        run_id = await stage.start()
        first = await stage.job_of(run_id)
        await stage.pool.cancel(run_id)
        await stage.ends(run_id, S.CANCELLED)
        await stage.play(run_id, S.SCHEDULED)
        await wait_until(
            lambda: len(stage.jobs_of(run_id)) == 2, timeout=20, description="a second attempt"
        )
        (second,) = (job for job in stage.jobs_of(run_id) if job is not first)
        await asyncio.sleep(3)
        assert second.stop_requests == 0
        second.set("RUNNING")
        await stage.play(run_id, S.COMPLETED)
        second.set("SUCCEEDED")
        await stage.pool.wait_for_log(run_id, "is SUCCEEDED")
    assert await stage.pool.state(run_id) == S.COMPLETED


async def test_job_that_will_not_die_keeps_its_run_cancelling(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted is not done: only a job that has ended makes the run Cancelled."""
    set_timing(monkeypatch, stop_confirm=0.5)
    stage.ray.stop_seconds = math.inf
    async with stage.pool.working():
        run_id, job = await stage.running(stop_grace_seconds=1)
        await stage.pool.cancel(run_id)
        await stage.pool.wait_for_log(run_id, "has not ended yet")
        assert await stage.pool.state(run_id) == S.CANCELLING
        job.stop_seconds = 0
        await stage.ends(run_id, S.CANCELLED)


async def test_cancelling_waits_for_a_cluster_that_is_away(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running(stop_grace_seconds=1)
        await stage.ray.stop_listening()
        await stage.pool.wait_for_log(run_id, SILENT)
        await stage.pool.cancel(run_id)
        await asyncio.sleep(1.5)
        assert await stage.pool.state(run_id) == S.CANCELLING
        await stage.ray.listen_again()
        await stage.ends(run_id, S.CANCELLED)
    assert job.status == "STOPPED"
