"""A SIGTERM that is no cancellation: the run's state says so, and stays what it is."""

from pathlib import Path
from uuid import UUID

import anyio
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.shared.ids import InfrastructurePid
from tests.integration.driver_kit import START_SECONDS, begin, ended_job, ends, traces
from tests.integration.harness import Pool
from tests.integration.processes import all_gone, engine_of, job_supervisor_of
from tests.waiting import wait_until

pytestmark = pytest.mark.ray

_SETTLED_SECONDS = 4
_RESCHEDULE = {"env": {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}}


async def stop(pool: Pool, run_id: UUID) -> None:
    """Stop a run's job as `ray job stop` does."""
    pid = InfrastructurePid.parse((await pool.read(run_id)).infrastructure_pid or "")
    async with JobsClient(Connection(pid.cluster.name)) as client:
        assert await client.stop(pid.submission_id)


async def history(pool: Pool, run_id: UUID) -> list[str]:
    states = await pool.client.read_flow_run_states(run_id)
    return [s.name or "" for s in sorted(states, key=lambda s: s.timestamp)]


@pytest.mark.parametrize(
    "flows", [("loops",), pytest.param(("sleeps_async",), marks=pytest.mark.extra)]
)
async def test_a_stopped_job_crashes_its_run_and_says_who_did_it(
    pool: Pool, tmp_path: Path, flows: tuple[str, ...]
) -> None:
    async with pool.working():
        runs = {name: await begin(pool, name, tmp_path / name) for name in flows}
        for name, run_id in runs.items():
            await stop(pool, run_id)
            await ends(pool, run_id, StateType.CRASHED, "told to stop (SIGTERM or SIGINT) outside")
            await all_gone(run_id, within=5)
            assert (await ended_job(pool, run_id)).status == JobStatus.STOPPED
            assert traces(tmp_path / name, "on_cancellation") == []
        await anyio.sleep(_SETTLED_SECONDS)
        for name, run_id in runs.items():
            assert (await history(pool, run_id))[-2:] == ["Running", "Crashed"], name
            assert len(traces(tmp_path / name, "on_crashed")) == 1


@pytest.mark.extra
async def test_a_stopped_job_is_tried_again_where_that_is_asked_for(
    pool: Pool, tmp_path: Path
) -> None:
    async with pool.working():
        run_id = await begin(
            pool,
            "waits_for_permission",
            tmp_path,
            trace="ran",
            job_variables=_RESCHEDULE,
        )
        first = (await pool.read(run_id)).infrastructure_pid
        await stop(pool, run_id)
        await wait_until(
            lambda: len(traces(tmp_path, "ran")) == 2,
            timeout=START_SECONDS,
            description="the second try",
        )
        assert await pool.state(run_id) == StateType.RUNNING
        (tmp_path / "go").touch()
        run = await ends(pool, run_id, StateType.COMPLETED)
        assert run.infrastructure_pid != first
        await ended_job(pool, run_id)
        await anyio.sleep(_SETTLED_SECONDS)
        names = await history(pool, run_id)
    assert len(traces(tmp_path, "ran")) == 2
    after = names[names.index("AwaitingRetry") :]
    assert after[-2:] == ["Running", "Completed"]
    assert not {"Crashed", "Cancelled", "Cancelling", "Failed"} & set(names), names


@pytest.mark.extra
async def test_a_run_in_a_wait_between_two_tries_is_not_left_there(
    pool: Pool, tmp_path: Path
) -> None:
    """Its state is Scheduled, but no worker takes a run that is to be retried in its process."""
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    async with pool.working():
        runs = [
            await begin(pool, "retries_in_a_while", folder, trace="ran")
            for folder in (stopped, killed)
        ]
        for run_id in runs:
            await wait_until(
                lambda run_id=run_id: is_in(pool, run_id, StateType.SCHEDULED),
                timeout=20,
                description="the wait for the second try",
            )
        await stop(pool, runs[0])
        job_supervisor_of(engine_of(killed, "ran")).kill()
        await ends(pool, runs[0], StateType.CRASHED, "outside Prefect")
        await ends(pool, runs[1], StateType.CRASHED)


async def is_in(pool: Pool, run_id: UUID, state: StateType) -> bool:
    return await pool.state(run_id) == state
