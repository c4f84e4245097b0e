"""`infrastructure_retries`: another attempt, once the former has ended, and never for the flow."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType
from prefect.states import Paused, Running
from prefect.utilities.engine import propose_state

from prefect_ray_worker.prefect_api import flow_runs
from prefect_ray_worker.shared.ids import INFRASTRUCTURE_RETRY
from prefect_ray_worker.worker import RayWorker
from tests.fake_ray import FakeJob, Fault, Kind
from tests.integration.harness import set_timing
from tests.integration.stage import Stage
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timing(monkeypatch, retry_delay=0.5, nodes_end=3.0)


def kill_supervisor(job: FakeJob) -> None:
    job.set(
        "FAILED",
        error_type="JOB_SUPERVISOR_ACTOR_DIED",
        message="Job supervisor actor died: The actor died unexpectedly before finishing.",
    )


async def next_job(stage: Stage, run_id: UUID, known: list[FakeJob]) -> FakeJob:
    await wait_until(
        lambda: len(stage.jobs_of(run_id)) > len(known), timeout=30, description="another job"
    )
    (new,) = [job for job in stage.jobs_of(run_id) if job not in known]
    known.append(new)
    await stage.play(run_id, StateType.RUNNING)
    return new


async def test_run_is_tried_again_until_its_retries_are_used_up(stage: Stage) -> None:
    """Also across workers: the attempts are counted in the run's history."""
    async with stage.pool.working():
        run_id = await stage.start(infrastructure_retries=2)
        jobs: list[FakeJob] = []
        kill_supervisor(await next_job(stage, run_id, jobs))
        second = await next_job(stage, run_id, jobs)
        await stage.pool.wait_for_log(run_id, "tried again")
    kill_supervisor(second)
    async with stage.heir():
        kill_supervisor(await next_job(stage, run_id, jobs))
        await stage.ends(run_id, StateType.CRASHED, "supervisor")
    states = await stage.pool.client.read_flow_run_states(run_id)
    retries = [state for state in states if state.name == INFRASTRUCTURE_RETRY]
    assert [(s.message or "")[:29] for s in retries] == [
        "Infrastructure retry 1 of 2. ",
        "Infrastructure retry 2 of 2. ",
    ]
    assert len({job.submission_id for job in jobs}) == 3


@task
def some_task() -> None: ...


async def test_tasks_of_a_lost_attempt_are_settled_although_the_next_one_has_begun(
    stage: Stage,
) -> None:
    """They stayed Running if the rest of the lost attempt's log came after the next claim."""
    client = stage.pool.client
    async with stage.pool.working():
        run_id = await stage.start(infrastructure_retries=1)
        jobs: list[FakeJob] = []
        first = await next_job(stage, run_id, jobs)
        left = await client.create_task_run(some_task, run_id, "left", state=Running())
        stage.ray.faults.add(Fault("GET", "logs", kind=Kind.STATUS, status=503, times=None))
        kill_supervisor(first)
        await next_job(stage, run_id, jobs)
        goes_on = await client.create_task_run(some_task, run_id, "goes on", state=Running())
        stage.ray.faults.clear()

        async def state_of_left() -> State | None:
            state = (await client.read_task_run(left.id)).state
            return state if state is not None and state.is_final() else None

        state = await wait_until(state_of_left, timeout=30, description="the task's end")
        assert state is not None
        assert state.is_crashed()
        assert "another attempt at the run has begun" in (state.message or "")
        await stage.pool.wait_for_log(run_id, "Settled 1 task runs")
        other = (await client.read_task_run(goes_on.id)).state
        assert other is not None
        assert other.is_running()


async def test_lost_job_is_tried_again_once_its_nodes_have_ended(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, _ = await stage.running(infrastructure_retries=1)
        stage.ray.restart(new_session=True)
        lost_at = datetime.now(UTC)
        await next_job(stage, run_id, [])
        states = await stage.pool.client.read_flow_run_states(run_id)
        (retry,) = [state for state in states if state.name == INFRASTRUCTURE_RETRY]
        scheduled = retry.state_details.scheduled_time
        assert scheduled is not None
        assert (scheduled - lost_at).total_seconds() >= RayWorker.timing.nodes_end


async def test_errors_of_the_flow_are_not_retried(stage: Stage) -> None:
    async with stage.pool.working():
        run_id, job = await stage.running(infrastructure_retries=3)
        job.set("FAILED", driver_exit_code=1)
        await stage.ends(run_id, StateType.CRASHED, "exit code 1")
        run_id, job = await stage.running(infrastructure_retries=3)
        job.set("STOPPED")
        await stage.ends(run_id, StateType.CRASHED, "outside Prefect")


async def test_cancelling_while_it_waits_for_its_retry(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_timing(monkeypatch, retry_delay=60.0)
    async with stage.heir():
        run_id, job = await stage.running(infrastructure_retries=3)
        kill_supervisor(job)
        await stage.pool.wait_for_log(run_id, "tried again")
        await stage.pool.cancel(run_id)
        await stage.ends(run_id, StateType.CANCELLED)
    assert stage.jobs_of(run_id) == [job]


async def test_pause_that_nobody_has_resumed_holds_the_next_attempt_too(stage: Stage) -> None:
    """The server took it for one that was resumed, and the flow passed its gate for approval."""

    async def pause(key: str) -> bool:
        paused: State[Any] = Paused(pause_key=key)
        return (await propose_state(client, paused, flow_run_id=run_id)).is_paused()

    client = stage.pool.client
    async with stage.pool.working():
        run_id, job = await stage.running(infrastructure_retries=1)
        assert await pause("1")
        await client.resume_flow_run(run_id)
        assert await pause("2")
        kill_supervisor(job)
        await next_job(stage, run_id, [job])
        assert not (await stage.pool.read(run_id)).empirical_policy.resuming
        assert not await pause("1"), "it was resumed"
        assert await pause("2")


@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.extra)])
async def test_retry_is_counted_once_although_the_answer_to_it_was_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    """Nor is the state of the next attempt undone, if that has begun meanwhile.

    A worker begins no attempt while it still settles the one before, so another one has to.
    """
    async with stage.pool.working(2 if goes_on else 1):
        run_id = await stage.start(infrastructure_retries=2)
        jobs: list[FakeJob] = []
        first = await next_job(stage, run_id, jobs)

        async def lose_the_answer(client: PrefectClient, state: State, **more: Any) -> State:
            granted = await propose_state(client, state, **more)
            if state.name == INFRASTRUCTURE_RETRY and not lost:
                lost.append(granted)
                if goes_on:
                    await next_job(stage, run_id, jobs)
                raise httpx.ReadError("the answer was lost")
            return granted

        lost: list[State] = []
        monkeypatch.setattr(flow_runs, "propose_state", lose_the_answer)
        kill_supervisor(first)
        if not goes_on:
            await next_job(stage, run_id, jobs)
        await wait_until(lambda: len(jobs) == 2, timeout=30, description="the second attempt")
        await stage.play(run_id, StateType.COMPLETED)
        jobs[-1].set("SUCCEEDED")
        await stage.ends(run_id, StateType.COMPLETED)
    states = await stage.pool.client.read_flow_run_states(run_id)
    assert sum(state.name == INFRASTRUCTURE_RETRY for state in states) == 1
    assert len(jobs) == 2
