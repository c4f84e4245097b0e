"""What a run leaves behind when its worker or its driver dies: its log, its children, a pause."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from prefect import task
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import State, StateType
from prefect.states import Paused, Pending, Running, Scheduled, Suspended

from prefect_ray_worker.prefect_api import children
from prefect_ray_worker.prefect_api.children import Ending, end_children
from prefect_ray_worker.runs.recovery.labels import OWNER_LABEL, Worker, claimed_by
from prefect_ray_worker.shared.ids import DELETE_AFTER_KEY
from tests.fake_ray.faults import Fault, Kind
from tests.integration.harness import set_timing
from tests.integration.stage import MISSED_SECONDS, Stage
from tests.waiting import wait_until


def lines(first: int, last: int) -> list[str]:
    return [f"line {number:02}" for number in range(first, last)]


async def lines_of(stage: Stage, run_id: UUID) -> list[str]:
    """Return the lines of the job's log that Prefect has, in order."""
    logs = await stage.pool.client.read_logs(
        log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200
    )
    text = "\n".join(log.message for log in logs if log.name.startswith("prefect.ray.job"))
    return [line for line in text.split("\n") if line.startswith("line ")]


async def has_lines(stage: Stage, run_id: UUID, wanted: list[str], seconds: float = 30) -> None:
    async def there() -> bool:
        return await lines_of(stage, run_id) == wanted

    await wait_until(there, timeout=seconds, description=f"{len(wanted)} lines, once and in order")


@pytest.mark.extra
async def test_log_of_a_run_that_ended_while_its_worker_was_dead_arrives(
    stage: Stage, tmp_path: Path
) -> None:
    """34 of 40 lines never arrived: nobody looked for runs that had ended."""
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id, job = await stage.running()
        job.print("".join(f"{line}\n" for line in lines(0, 6)))
        await has_lines(stage, run_id, lines(0, 6))
        process.kill()
    job.print("".join(f"{line}\n" for line in lines(6, 40)))
    job.set("SUCCEEDED", driver_exit_code=0)
    await stage.play(run_id, StateType.COMPLETED)
    async with stage.heir(name="second"):
        await has_lines(stage, run_id, lines(0, 40), MISSED_SECONDS)
        assert await stage.pool.state(run_id) == StateType.COMPLETED
        await is_finished(stage, run_id)


async def test_log_that_is_lost_with_its_record_is_told_on_the_run(
    stage: Stage, tmp_path: Path
) -> None:
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id, job = await stage.running()
        process.kill()
    await stage.play(run_id, StateType.COMPLETED)
    assert job.submission_id is not None
    del stage.ray.jobs[job.submission_id]
    async with stage.heir(name="first"):
        await stage.pool.wait_for_log(run_id, "is lost: the Ray cluster does not have the job")
        await is_finished(stage, run_id)
        assert await stage.pool.state(run_id) == StateType.COMPLETED


@pytest.mark.extra
async def test_log_that_can_never_be_fetched_is_told_on_the_run(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was tried for a day, and then forgotten without a word."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_UNREACHABLE_LIMIT_SECONDS", "10")
    set_timing(monkeypatch, quiet_after=1.0)
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id, job = await stage.running()
        process.kill()
    stage.ray.faults.add(Fault("*", "", kind=Kind.DROP, times=None))
    await stage.play(run_id, StateType.COMPLETED)
    async with stage.heir(name="first"):
        said = await stage.pool.wait_for_log(run_id, "is missing: it could not be", seconds=60)
        assert job.submission_id is not None
        assert job.submission_id in said
        assert stage.ray.address in said
        await is_finished(stage, run_id)
        assert await stage.pool.state(run_id) == StateType.COMPLETED
        told = [line for line in await stage.pool.logs(run_id) if "is missing:" in line]
        assert len(told) == 1


async def is_finished(stage: Stage, run_id: UUID) -> None:
    async def there() -> bool:
        labels = (await stage.pool.read(run_id)).labels
        left = [value for key, value in labels.items() if ".unfinished." in key]
        return left == ["no"]

    await wait_until(there, timeout=20, description="nothing left to do")


async def test_record_of_a_job_stays_until_its_run_is_settled(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record was deleted under an adopter that needed it: no diagnosis, no log."""
    set_timing(monkeypatch, sweep=1.0)
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id, job = await stage.running(delete_job_after_seconds=5)
        process.kill()
    # On another machine's own Ray, as its label says: this worker must not adopt it.
    _, instance, _, name = str((await stage.pool.read(run_id)).labels[OWNER_LABEL]).split(" ")
    attempt = (job.submission_id or "").rpartition("-")[2]
    owner = Worker(name, instance)
    elsewhere = claimed_by(owner, attempt, "elsewhere")
    await stage.pool.client.update_flow_run_labels(run_id, dict(elsewhere))
    assert job.body["metadata"][DELETE_AFTER_KEY] == "5"
    job.set("FAILED", driver_exit_code=7)
    async with stage.heir(name="second"):
        await anyio.sleep(9)
        assert job.submission_id in stage.ray.jobs
        here = claimed_by(owner, attempt)
        await stage.pool.client.update_flow_run_labels(run_id, dict(here))
        await stage.ends(run_id, StateType.CRASHED, "exit code 7", seconds=MISSED_SECONDS)
        await wait_until(
            lambda: job.submission_id not in stage.ray.jobs,
            timeout=20,
            description="the deletion",
        )


@task
def some_task() -> None: ...


async def open_task_runs(stage: Stage, run_id: UUID, count: int) -> None:
    """Report task runs as a driver does, that dies before their end."""
    limiter = anyio.CapacityLimiter(8)

    async def begin(number: int) -> None:
        async with limiter:
            await stage.pool.client.create_task_run(
                some_task, run_id, dynamic_key=str(number), state=Running()
            )

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(begin, number)


async def states_of_tasks(stage: Stage, run_id: UUID) -> list[State | None]:
    found: list[State | None] = []
    wanted = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id]))
    while page := await stage.pool.client.read_task_runs(
        task_run_filter=wanted, offset=len(found), limit=200
    ):
        found += [run.state for run in page]
    return found


async def new_subflow(stage: Stage, parent_id: UUID | None, **fields: str) -> UUID:
    """Create a Running flow run below another one, or below none.

    As `run_deployment` does: the server lets the task run have the states of the subflow (3.8.8).
    """
    client = stage.pool.client
    body: dict[str, Any] = {**fields, "state": {"type": "RUNNING", "name": "Running"}}
    if parent_id is not None:
        parent = await client.create_task_run(some_task, parent_id, dynamic_key=uuid4().hex)
        body["parent_task_run_id"] = str(parent.id)
    flow_id = await client.create_flow_from_name("subflow")
    # The public method takes a flow's object.
    answer = await client._client.post("/flow_runs/", json={**body, "flow_id": str(flow_id)})
    return UUID(answer.json()["id"])


@pytest.mark.parametrize(
    ("type_", "tasks"),
    [pytest.param(StateType.CRASHED, 250, marks=pytest.mark.extra), (StateType.CANCELLED, 3)],
)
async def test_children_of_a_dead_driver_are_settled(
    stage: Stage, type_: StateType, tasks: int
) -> None:
    """They were Running for ever, and held their tags' slots. A page has 200 of them."""
    client = stage.pool.client
    async with stage.heir():
        run_id, job = await stage.running(stop_grace_seconds=1)
        await open_task_runs(stage, run_id, tasks)
        subflow_id = await new_subflow(stage, run_id)
        await open_task_runs(stage, subflow_id, 3)
        if type_ is StateType.CANCELLED:
            job.stop_seconds = 0.1
            await stage.pool.cancel(run_id)
        else:
            job.set("FAILED", driver_exit_code=-9)
        await stage.ends(run_id, type_)
        run = await stage.pool.wait_for(subflow_id, seconds=60)
        assert run.state is not None
        assert run.state.type == type_
        # A Prefect server tidies up below a Cancelled run itself, every 20 s (3.8.8).
        by_prefect = "The parent flow run was cancelled" if type_ is StateType.CANCELLED else "-"
        said = run.state.message or ""
        assert "ParentEnded" in said or by_prefect in said
        for parent_id, count in ((run_id, tasks + 1), (subflow_id, 3)):

            async def settled(parent_id: UUID = parent_id, count: int = count) -> bool:
                states = await states_of_tasks(stage, parent_id)
                return [s.type for s in states if s is not None] == [type_] * count

            await wait_until(settled, timeout=60, description="the end of all task runs")
        found = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id])
            )
        )
        assert [run.id for run in found] == [subflow_id]


async def test_subflow_with_a_job_of_its_own_outlives_its_parent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of a `ray_job` that the flow had called was Crashed, and its healthy job stopped."""
    monkeypatch.setattr(children, "_PAUSE_SECONDS", 0.0)
    client = stage.pool.client
    run_id = await new_subflow(stage, None)
    in_process = await new_subflow(stage, run_id)
    in_pool = await new_subflow(stage, run_id, work_pool_name=stage.pool.name)
    begun = await new_subflow(stage, run_id)
    await client.update_flow_run(begun, infrastructure_pid="of a pool that was deleted")

    async def never() -> None: ...

    ending = Ending(StateType.CRASHED, "The node died.", datetime.now(UTC))
    await end_children(client, run_id, ending, lambda ask: ask(), began_anew=never)
    states = [await stage.pool.state(child) for child in (in_process, in_pool, begun)]
    assert states == [StateType.CRASHED, StateType.RUNNING, StateType.RUNNING]
    # Their task runs were Crashed, although the subflows went on.
    shown = await states_of_tasks(stage, run_id)
    types = {s.state_details.child_flow_run_id: s.type for s in shown if s is not None}
    assert types == dict(zip((in_process, in_pool, begun), states, strict=True))


async def test_background_task_outlives_the_run_that_submitted_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was Cancelled, although a task worker was about to run it."""
    monkeypatch.setattr(children, "_PAUSE_SECONDS", 0.0)
    run_id = await new_subflow(stage, None)
    submitted = Scheduled()
    submitted.state_details.deferred = True  # as `task.delay()` does
    for key, state in (("background", submitted), ("in process", Pending())):
        await stage.pool.client.create_task_run(some_task, run_id, dynamic_key=key, state=state)

    async def never() -> None: ...

    ending = Ending(StateType.CANCELLED, "The driver is gone.", datetime.now(UTC))
    await end_children(stage.pool.client, run_id, ending, lambda ask: ask(), began_anew=never)
    states = {state.type for state in await states_of_tasks(stage, run_id) if state is not None}
    assert states == {StateType.SCHEDULED, StateType.CANCELLED}


@pytest.mark.extra
async def test_thousands_of_task_runs_are_settled_in_bounded_time(stage: Stage) -> None:
    async with stage.heir():
        run_id, job = await stage.running()
        await open_task_runs(stage, run_id, 2_000)
        job.set("FAILED", driver_exit_code=-9)
        await stage.ends(run_id, StateType.CRASHED)
        began = anyio.current_time()
        await stage.pool.wait_for_log(run_id, "Settled 2000 task runs", seconds=900)
        print(f"\n2,000 task runs settled in {anyio.current_time() - began:.0f} s")
        states = await states_of_tasks(stage, run_id)
        assert [s.type for s in states if s is not None] == [StateType.CRASHED] * 2_000


async def test_job_that_dies_while_its_run_is_paused_in_it_is_told(stage: Stage) -> None:
    """The run stayed Paused, and after its resumption Running."""
    async with stage.heir():
        run_id, job = await stage.running()
        suspended, other = await stage.running()
        await stage.pool.client.set_flow_run_state(run_id, Paused(timeout_seconds=300))
        await stage.pool.client.set_flow_run_state(suspended, Suspended(timeout_seconds=300))
        other.set("SUCCEEDED", driver_exit_code=0)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
        assert await stage.pool.state(suspended) == StateType.PAUSED, "its next process resumes it"


async def test_paused_run_whose_worker_comes_back_is_followed(stage: Stage, tmp_path: Path) -> None:
    """Nobody followed it after its resumption, as its owner had the name of a live worker."""
    with stage.worker_process(tmp_path / "home", "--name", "same") as process:
        run_id, job = await stage.running()
        await stage.pool.client.set_flow_run_state(run_id, Paused(timeout_seconds=300))
        process.kill()
    async with stage.heir(name="same"):
        await stage.pool.wait_for_log(run_id, "its worker has gone")
        await stage.play(run_id, StateType.RUNNING)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
