"""Recovery: whatever a worker leaves behind, another one, or itself again, goes on with it."""

import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.states import Pending

from prefect_ray_worker.runs.recovery.labels import OWNER_LABEL, labelled_owner
from prefect_ray_worker.runs.run import RunAttempt
from prefect_ray_worker.shared.ids import (
    ClusterRef,
    InfrastructurePid,
    present_claim,
    submission_id,
)
from tests.counted import Change
from tests.fake_ray import FakeRay, Fault, Kind
from tests.fake_ray.script import PENDING_FOREVER, FakeJob
from tests.integration.harness import new_pool, set_timing
from tests.integration.stage import MISSED_SECONDS, Stage
from tests.waiting import patience, wait_until


async def claimed_run(stage: Stage, labels: dict[str, str] | None = None, **variables: Any) -> UUID:
    """Leave a run as a worker does that dies between its claim and the submission."""
    deployment = await stage.pool.deploy("adds", job_variables=variables)
    run = await stage.pool.client.create_flow_run_from_deployment(deployment, state=Pending())
    if labels:
        await stage.pool.client.update_flow_run_labels(run.id, dict(labels))
    return run.id


async def job_id_of(stage: Stage, run_id: UUID) -> str:
    states = await stage.pool.client.read_flow_run_states(run_id)
    claim = present_claim(states)
    assert claim is not None
    return submission_id(run_id, claim)


async def owner_of(stage: Stage, run_id: UUID) -> str:
    return str((await stage.pool.read(run_id)).labels.get(OWNER_LABEL, ""))


async def is_given_up(stage: Stage, run_id: UUID) -> bool:
    owned = labelled_owner((await stage.pool.read(run_id)).labels)
    return owned is not None and owned[1].gave_up


async def taken_over(stage: Stage, run_id: UUID, name: str) -> None:
    async def there() -> bool:
        return name in await owner_of(stage, run_id)

    await wait_until(there, timeout=MISSED_SECONDS, description=f"{name} to own the run")


async def test_killed_worker_is_replaced_by_another(stage: Stage, tmp_path: Path) -> None:
    adoptions = Change("prefect_ray_adoptions_total")
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id, job = await stage.running()
        assert "first" in await owner_of(stage, run_id)
        async with stage.heir(name="second"):
            process.kill()
            await taken_over(stage, run_id, "second")
            await stage.pool.wait_for_log(run_id, "its worker has gone")
            job.set("FAILED", driver_exit_code=7)
            await stage.ends(run_id, StateType.CRASHED, "exit code 7")
    assert len(stage.jobs_of(run_id)) == 1
    assert adoptions() == 1


@pytest.mark.extra
async def test_worker_of_the_same_name_goes_on_at_once(stage: Stage, tmp_path: Path) -> None:
    """A restarted pod or unit keeps its name: nobody waits until Prefect misses the old one."""
    with stage.worker_process(tmp_path / "home", "--name", "same") as process:
        run_id, job = await stage.running()
        process.kill()
    job.set("FAILED", driver_exit_code=7)
    with anyio.fail_after(12 * patience()):
        async with stage.heir(name="same", heartbeat_interval_seconds=30):
            await stage.ends(run_id, StateType.CRASHED, "exit code 7")


@pytest.mark.extra
async def test_stopped_worker_hands_its_runs_over_at_once(stage: Stage) -> None:
    """Nobody waits until Prefect misses it, which here would take longer than the test."""
    async with stage.pool.working(name="first", heartbeat_interval_seconds=60):
        run_id, job = await stage.running()
    assert await is_given_up(stage, run_id)
    async with stage.heir(name="second"):
        await taken_over(stage, run_id, "second")
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")


async def test_stopped_worker_hands_over_at_once_what_it_was_submitting(stage: Stage) -> None:
    stage.ray.faults.add(Fault("POST", "/api/jobs/$", Kind.HANG, times=1))
    async with stage.pool.working(name="first", heartbeat_interval_seconds=60):
        run_id = await stage.start()
        await wait_until(
            lambda: stage.ray.requests.number_of("POST"), timeout=20, description="a submission"
        )
    assert await is_given_up(stage, run_id)
    async with stage.heir(name="second"):
        await taken_over(stage, run_id, "second")
        job = await stage.job_of(run_id)
        stage.ray.faults.release()  # the first request arrives after all
        await stage.play(run_id, StateType.RUNNING)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
    assert len(stage.jobs_of(run_id)) == 1


async def test_job_that_ended_while_no_worker_was_there_is_settled(
    stage: Stage, tmp_path: Path
) -> None:
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        crashed, failed = await stage.running()
        cancelled, stopped = await stage.running()
        process.kill()
    failed.set("FAILED", driver_exit_code=7)
    await stage.pool.cancel(cancelled)
    stopped.set("STOPPED")
    async with stage.heir(name="first"):
        await stage.ends(crashed, StateType.CRASHED, "exit code 7")
        await stage.ends(cancelled, StateType.CANCELLED)


async def test_run_that_was_claimed_and_never_submitted_is_submitted(stage: Stage) -> None:
    run_id = await claimed_run(stage, {"prefect.worker.name": "dead"})
    async with stage.heir():
        job = await stage.job_of(run_id)
        assert job.submission_id == await job_id_of(stage, run_id)
        await stage.play(run_id, StateType.RUNNING)

        async def has_pid() -> bool:
            return bool((await stage.pool.read(run_id)).infrastructure_pid)

        await wait_until(has_pid, timeout=10, description="the pid to be recorded")
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")


@pytest.mark.extra
async def test_label_of_an_earlier_attempt_shuts_nobody_out(stage: Stage) -> None:
    """Attempt 2 was claimed by a worker that died before its label: 5 of 6 runs stayed Pending."""
    earlier = {OWNER_LABEL: "0123456789ab 123 - first", "prefect.worker.name": "dead"}
    runs = [await claimed_run(stage, earlier) for _ in range(6)]
    async with stage.heir(name="first"), stage.heir(name="second"):
        for run_id in runs:
            job = await stage.job_of(run_id)
            assert job.submission_id == await job_id_of(stage, run_id)
        owners = [await owner_of(stage, run_id) for run_id in runs]
        assert {owner.rpartition(" ")[2] for owner in owners} <= {"first", "second"}


async def test_unlabelled_claim_is_taken_over_once_it_is_old(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker died so early that nothing says which it was."""
    set_timing(monkeypatch, claim_grace=5.0)
    run_id = await claimed_run(stage)
    async with stage.heir():
        await anyio.sleep(3)
        assert not stage.jobs_of(run_id), "its worker may be about to submit it"
        await stage.job_of(run_id)


@pytest.mark.extra
async def test_unlabelled_claim_may_wait_for_its_turn_here(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a burst of hundreds: it would be adopted from the queue, and submitted twice."""
    set_timing(monkeypatch, claim_grace=1.0)
    stage.ray.faults.add(Fault("POST", "/api/jobs/$", Kind.HANG, times=1))
    async with stage.heir(name="busy"):
        await stage.start()
        await wait_until(
            lambda: stage.ray.requests.number_of("POST"), timeout=20, description="a submission"
        )
        run_id = await claimed_run(stage)
        await anyio.sleep(4)
        assert not stage.jobs_of(run_id), "this worker is still at others"
        stage.ray.faults.release()
        await stage.job_of(run_id)


async def test_job_whose_pid_was_never_recorded_is_found(stage: Stage) -> None:
    """The worker died after Ray had taken the job; the driver has begun, or not."""
    for state in (None, StateType.RUNNING):
        run_id = await claimed_run(stage, {"prefect.worker.name": "dead"})
        job_id = await job_id_of(stage, run_id)
        job = stage.ray.add_job(job_id, metadata={"prefect.io/flow-run-id": str(run_id)})
        if state is not None:
            await stage.play(run_id, state)
        async with stage.heir():
            await stage.pool.wait_for_log(run_id, "is RUNNING")
            assert stage.jobs_of(run_id) == [job], "not submitted again"
            job.set("FAILED", driver_exit_code=7)
            run = await stage.ends(run_id, StateType.CRASHED, "exit code 7")
            assert InfrastructurePid.parse(run.infrastructure_pid or "").submission_id == job_id


async def test_running_without_a_job_is_not_ours_to_end(stage: Stage) -> None:
    """`prefect flow-run execute` by hand, for example."""
    run_id = await claimed_run(stage, {"prefect.worker.name": "dead"})
    await stage.play(run_id, StateType.RUNNING)
    async with stage.heir():
        await stage.pool.wait_for_log(run_id, "left alone")
        await anyio.sleep(3)
        assert await stage.pool.state(run_id) == StateType.RUNNING
        told = [line for line in await stage.pool.logs(run_id) if "left alone" in line]
        assert len(told) == 1
        assert not stage.jobs_of(run_id)


async def test_claim_that_cannot_be_submitted_any_more_is_crashed(stage: Stage) -> None:
    run_id = await claimed_run(stage, {"prefect.worker.name": "dead"}, address="ftp://head")
    async with stage.heir():
        await stage.ends(run_id, StateType.CRASHED, "ftp://head")


async def test_cancelling_that_nobody_saw_is_finished(stage: Stage, tmp_path: Path) -> None:
    """Never submitted; and submitted, with a driver that does not hear."""
    never = await claimed_run(stage, {"prefect.worker.name": "dead"})
    await stage.pool.cancel(never)
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        deaf, job = await stage.running(stop_grace_seconds=1)
        process.kill()
    await stage.pool.cancel(deaf)
    async with stage.heir(name="first"):
        await stage.ends(never, StateType.CANCELLED)
        await stage.ends(deaf, StateType.CANCELLED)
    assert not stage.jobs_of(never)
    assert job.status == "STOPPED"


async def test_limits_count_from_the_true_start(stage: Stage, tmp_path: Path) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id = await stage.start(start_timeout_seconds=18)
        await stage.job_of(run_id)
        await stage.pool.wait_for_log(run_id, "is PENDING")
        process.kill()
    await anyio.sleep(5)
    async with stage.heir(name="first"):
        await stage.pool.wait_for_log(run_id, "its worker has gone")
        adopted = time.monotonic()
        await stage.ends(run_id, StateType.CRASHED, "start_timeout_seconds", seconds=60)
    assert time.monotonic() - adopted < 18


async def test_start_limit_counts_from_the_submission_after_a_takeover(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counted from the claim, and so the minutes in which a cluster started."""
    hour_ago = property(lambda _: datetime.now(UTC) - timedelta(hours=1))
    monkeypatch.setattr(RunAttempt, "claimed_at", hour_ago)

    async def submitted(ago: float) -> UUID:
        dead = {"prefect.worker.name": "dead"}
        run_id = await claimed_run(stage, dead, start_timeout_seconds=600)
        job_id = await job_id_of(stage, run_id)
        metadata = {"prefect.io/flow-run-id": str(run_id)}
        stage.ray.add_job(job_id, "PENDING", ago=ago, metadata=metadata)
        pid = InfrastructurePid(ClusterRef.of_address(stage.ray.address), job_id, "session")
        await stage.pool.client.update_flow_run(run_id, infrastructure_pid=str(pid))
        return run_id

    just_now, long_ago = await submitted(0), await submitted(601)
    async with stage.heir():
        await stage.ends(long_ago, StateType.CRASHED, "start_timeout_seconds", seconds=40)
        await stage.pool.wait_for_log(just_now, "is PENDING")
        await anyio.sleep(2)
        assert await stage.pool.state(just_now) == StateType.PENDING


async def test_deleted_run_has_its_job_stopped(stage: Stage) -> None:
    async with stage.heir():
        run_id, job = await stage.running()
        await stage.pool.client.delete_flow_run(run_id)
        await wait_until(lambda: job.status == "STOPPED", timeout=20, description="the stop")
        await stage.is_served()


@pytest.mark.extra
async def test_deleted_deployment_loses_no_outcome(stage: Stage, tmp_path: Path) -> None:
    """The driver has what it needs; the next worker goes on with the default limits.

    The pool names the cluster: to an address that nobody names any more, nothing is sent.
    """
    client = stage.pool.client
    template = (await client.read_work_pool(stage.pool.name)).base_job_template
    template["variables"]["properties"]["address"]["default"] = stage.ray.address
    await client.update_work_pool(stage.pool.name, WorkPoolUpdate(base_job_template=template))
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id, job = await stage.running()
        deployment = (await stage.pool.read(run_id)).deployment_id
        assert deployment is not None
        await stage.pool.client.delete_deployment(deployment)
        process.kill()
    async with stage.heir(name="first"):
        await stage.pool.wait_for_log(run_id, "its limits are the defaults")
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")


async def test_nothing_of_others_is_touched(stage: Stage, tmp_path: Path) -> None:
    """Another pool's run on the same cluster, and a job that is nobody's."""
    foreign = stage.ray.add_job("etl-nightly")
    async with new_pool({"address": stage.ray.address}) as other:
        elsewhere = Stage(other, stage.ray)
        with elsewhere.worker_process(tmp_path / "home", "--name", "theirs") as process:
            run_id, job = await elsewhere.running()
            process.kill()
        async with stage.heir(name="ours"):
            await stage.is_served()
            await anyio.sleep(MISSED_SECONDS / 2)
            assert "theirs" in await owner_of(elsewhere, run_id)
        assert await other.state(run_id) == StateType.RUNNING
    assert [j.stop_requests for j in (foreign, job)] == [0, 0]


async def test_paused_worker_does_no_harm_when_it_wakes(stage: Stage, tmp_path: Path) -> None:
    with stage.worker_process(tmp_path / "home", "--name", "sleeper") as process:
        run_id, job = await stage.running()
        async with stage.heir(name="second"):
            process.send_signal(signal.SIGSTOP)
            try:
                await taken_over(stage, run_id, "second")
            finally:
                process.send_signal(signal.SIGCONT)
            await stage.pool.wait_for_log(run_id, "Another worker has taken over", MISSED_SECONDS)
            assert "second" in await owner_of(stage, run_id), "it stays where it is"
            job.set("FAILED", driver_exit_code=7)
            await stage.ends(run_id, StateType.CRASHED, "exit code 7")
            await stage.pool.wait_for_log(run_id, "is FAILED")
            said = [line for line in await stage.pool.logs(run_id) if "is FAILED" in line]
            assert len(said) == 1, "one worker follows, and tells"


@pytest.mark.extra
async def test_workers_share_the_runs_of_a_dead_one(stage: Stage, tmp_path: Path) -> None:
    runs: dict[UUID, FakeJob] = {}
    with stage.worker_process(tmp_path / "home", "--name", "dead") as process:
        for _ in range(6):
            run_id = await stage.start()
            runs[run_id] = await stage.job_of(run_id)
            await stage.play(run_id, StateType.RUNNING)
        process.kill()
    async with stage.pool.working(3, heartbeat_interval_seconds=2) as workers:
        names = {worker.name for worker in workers}

        async def shared() -> bool:
            owners = [await owner_of(stage, run_id) for run_id in runs]
            return all(any(name in owner for name in names) for owner in owners)

        await wait_until(shared, timeout=MISSED_SECONDS, description="new owners of all runs")
        for job in runs.values():
            job.set("FAILED", driver_exit_code=7)
        for run_id in runs:
            await stage.ends(run_id, StateType.CRASHED, "exit code 7")
            await stage.pool.wait_for_log(run_id, "is FAILED")
            said = [line for line in await stage.pool.logs(run_id) if "is FAILED" in line]
            assert len(said) == 1, "each run has one owner"


async def test_nothing_is_sent_to_a_host_that_only_an_infrastructure_pid_names(
    stage: Stage, tmp_path: Path
) -> None:
    """Whoever may update a run could have a worker, with its token, ask any host."""
    async with FakeRay() as elsewhere:
        with stage.worker_process(tmp_path / "home", "--name", "first") as process:
            run_id, job = await stage.running()
            process.kill()
        pid = InfrastructurePid(ClusterRef.of_address(elsewhere.address), job.submission_id, "s")
        await stage.pool.client.update_flow_run(run_id, infrastructure_pid=str(pid))
        async with stage.heir(name="first"):
            await stage.pool.wait_for_log(run_id, "neither the run, its pool nor the worker names")
        assert not elsewhere.requests.number_of("GET")
        assert not elsewhere.requests.number_of("POST")
    run = await stage.pool.read(run_id)
    assert run.state is not None
    assert run.state.is_running(), "the run is left as it is"
