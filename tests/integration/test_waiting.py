"""A run whose job is PENDING says what it waits for, and never stands in its driver's way."""

from uuid import UUID, uuid4

import anyio
import pytest
from prefect.client.schemas.objects import State, StateType

from prefect_ray_worker.prefect_api.flow_runs import INFRASTRUCTURE_PENDING
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from tests.fake_ray.faults import Fault, Kind
from tests.fake_ray.nodes import FakeNode
from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.harness import Pool, set_timing
from tests.integration.stage import Stage
from tests.real_ray import RealRay
from tests.waiting import wait_until

TICK_SECONDS = 0.5


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timing(monkeypatch, explain_after=1.0, explain_refresh=1.0, explain_tick=TICK_SECONDS)


async def states_of(pool: Pool, run_id: UUID) -> list[str]:
    states = await pool.client.read_flow_run_states(run_id)
    return [state.name or "" for state in sorted(states, key=lambda state: state.timestamp)]


async def said_to_wait(pool: Pool, run_id: UUID) -> State[None]:
    async def state() -> State[None] | None:
        found = (await pool.read(run_id)).state
        return found if found is not None and found.name == INFRASTRUCTURE_PENDING else None

    found = await wait_until(state, timeout=30, description="InfrastructurePending")
    assert found is not None
    return found


async def test_reason_is_shown_once_and_what_changes_is_logged(stage: Stage) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    stage.ray.nodes = [FakeNode({"CPU": 4}, used={"CPU": 3})]
    async with stage.pool.working():
        run_id = await stage.start(entrypoint_num_cpus=8)
        state = await said_to_wait(stage.pool, run_id)
        assert state.type == StateType.PENDING
        assert "asks for 8 CPU: its one node has 4 CPU" in (state.message or "")
        stage.ray.nodes.append(FakeNode({"CPU": 8}, used={"CPU": 8}))
        said = await stage.pool.wait_for_log(run_id, "free are 1 CPU of 12 CPU")
        assert "has been PENDING for" in said
        stage.ray.nodes[1].used = {"CPU": 7}  # the same reason: not worth another line yet
        job = await stage.job_of(run_id)
        looks = stage.ray.requests.number_of("GET", "/api/v0/nodes")
        await wait_until(
            lambda: stage.ray.requests.number_of("GET", "/api/v0/nodes") > looks + 1,
            description="two more looks",
        )
        assert "free are 2 CPU" not in "\n".join(await stage.pool.logs(run_id))
        job.set("RUNNING")
        # What the driver proposes, under Prefect's rules.
        for kind, name in ((StateType.PENDING, "Starting"), (StateType.RUNNING, "Running")):
            await stage.pool.client.set_flow_run_state(run_id, State(type=kind, name=name))
        await stage.play(run_id, StateType.COMPLETED)
        job.set("SUCCEEDED")
        await stage.ends(run_id, StateType.COMPLETED)
    names = await states_of(stage.pool, run_id)
    assert names[-4:] == [INFRASTRUCTURE_PENDING, "Starting", "Running", "Completed"]
    assert names.count(INFRASTRUCTURE_PENDING) == 1


async def test_what_the_driver_has_reported_stands(stage: Stage) -> None:
    """The cluster's answer may be older than the driver's word."""
    stage.ray.on_submit = PENDING_FOREVER
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.job_of(run_id)
        await stage.play(run_id, StateType.PENDING, "Starting")
        other = await stage.start()
        await said_to_wait(stage.pool, other)
        assert (await states_of(stage.pool, run_id))[-1] == "Starting"
        for waiting_run in (run_id, other):
            await stage.pool.cancel(waiting_run)
            await stage.ends(waiting_run, StateType.CANCELLED)


@pytest.mark.extra
async def test_second_worker_does_not_say_it_again(stage: Stage) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    async with stage.heir():
        run_id = await stage.start(runtime_env={"pip": ["six"]})
        state = await said_to_wait(stage.pool, run_id)
        assert "Ray is setting up the runtime environment (pip)" in (state.message or "")
    async with stage.heir():
        await stage.pool.wait_for_log(run_id, "Following Ray Job", seconds=40)
        job = await stage.job_of(run_id)
        job.set("FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE", message="no")
        await stage.ends(run_id, StateType.CRASHED, "RuntimeEnvFailed: ")
    assert (await states_of(stage.pool, run_id)).count(INFRASTRUCTURE_PENDING) == 1


async def test_cluster_is_asked_once_for_all_its_waiting_runs(stage: Stage) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    stage.ray.nodes = [FakeNode({"CPU": 4}, used={"CPU": 3})]
    async with stage.pool.working():
        runs = [await stage.start(entrypoint_num_cpus=8) for _ in range(6)]
        for run_id in runs:
            await said_to_wait(stage.pool, run_id)
        stage.ray.requests.reset()
        seconds = 4
        await anyio.sleep(seconds)
        looks = stage.ray.requests.number_of("GET", "/api/v0/nodes")
    assert 1 <= looks <= seconds / TICK_SECONDS + 1, "a look at a tick, for all the runs"


@pytest.mark.extra
async def test_cluster_that_does_not_say_what_it_has(stage: Stage) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    stage.ray.faults.add(Fault("GET", "/api/v0/nodes", Kind.STATUS, times=None, status=404))
    async with stage.pool.working():
        run_id = await stage.start(entrypoint_num_cpus=1)
        state = await said_to_wait(stage.pool, run_id)
        assert "asks for 1 CPU and has not started. Ray says: Job has not" in (state.message or "")
        await stage.pool.cancel(run_id)
        await stage.ends(run_id, StateType.CANCELLED)


@pytest.mark.ray
@pytest.mark.extra
async def test_on_a_real_ray_the_run_goes_on_when_there_is_room(
    ray_cluster: RealRay, pool: Pool
) -> None:
    """The real driver claims a run that was said to wait."""
    held = JobSubmitRequest(
        entrypoint="exec sleep 120",
        submission_id=f"holds-{uuid4().hex[:8]}",
        runtime_env={},
        metadata={},
        entrypoint_num_cpus=2,
    )
    async with JobsClient(Connection(ray_cluster.address)) as client, pool.working():
        await client.submit(held)
        too_large = await pool.start("adds", job_variables={"entrypoint_num_cpus": 64})
        run_id = await pool.start("adds", job_variables={"entrypoint_num_cpus": 1})
        state = await said_to_wait(pool, too_large)
        assert "asks for 64 CPU: its one node has 2 CPU" in (state.message or "")
        state = await said_to_wait(pool, run_id)
        assert "asks for 1 CPU" in (state.message or "")
        await client.stop(held.submission_id)
        await pool.cancel(too_large)
        run = await pool.wait_for(run_id, seconds=90)
        assert run.state is not None
        assert run.state.type == StateType.COMPLETED
        run = await pool.wait_for(too_large)
        assert run.state is not None
        assert run.state.type == StateType.CANCELLED
    names = await states_of(pool, run_id)
    assert names[names.index(INFRASTRUCTURE_PENDING) :][:3] == [
        INFRASTRUCTURE_PENDING, "Starting", "Running"
    ]  # fmt: skip


async def test_run_that_is_cancelled_while_its_job_waits_leaves_nothing_to_do(stage: Stage) -> None:
    """Its worker took it for one whose worker had gone, and looked for its log, every minute."""
    stage.ray.on_submit = PENDING_FOREVER
    async with stage.pool.working():
        run_id = await stage.start()
        job = await stage.job_of(run_id)
        await stage.pool.wait_for_log(run_id, "is PENDING")
        await stage.pool.cancel(run_id)
        await stage.ends(run_id, StateType.CANCELLED, "has queued the stop")
        label = f"prefect-ray-worker.unfinished.{job.submission_id.rpartition('-')[2]}"

        async def is_finished() -> bool:
            return (await stage.pool.read(run_id)).labels.get(label) == "no"

        await wait_until(is_finished, description="nothing to be left to do")
