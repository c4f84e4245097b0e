"""A real Prefect server and a fake Ray, whose jobs run nothing: the test plays the driver."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateDetails, StateType
from prefect.states import Scheduled

from prefect_ray_worker.worker import RayWorker
from tests.fake_ray import FakeJob, FakeRay
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import Pool, new_pool
from tests.integration.worker_process import worker_process
from tests.waiting import wait_until

STAGE_INTERVAL = 0.5
"""Seconds between two looks of the worker at the fake Ray."""
HEARTBEAT_SECONDS = 2
"""Seconds between two heartbeats of workers that are to be missed soon."""
MISSED_SECONDS = 30
"""Within this time the runs of such a worker are another's: three heartbeats, a look of the
server, a look of the other worker, and what a busy machine adds."""
_CREATED_PER_SECOND = 20
_STARTED_PER_SECOND = 5


@dataclass
class Stage:
    """What a test of faults acts on.

    Attributes:
        pool: A work pool whose deployments go to `ray`.
        ray: The fake cluster.
    """

    pool: Pool
    ray: FakeRay

    async def start(self, **job_variables: Any) -> UUID:
        """Schedule a run for now."""
        return await self.pool.start("adds", job_variables=job_variables)

    async def start_many(self, count: int) -> list[UUID]:
        """Schedule runs of one deployment, a few each second: more would queue up in Prefect."""
        deployment = await self.pool.deploy("adds")
        began = datetime.now(UTC) + timedelta(seconds=count / _CREATED_PER_SECOND)
        runs = [
            await self.pool.client.create_flow_run_from_deployment(
                deployment,
                state=Scheduled(scheduled_time=began + timedelta(seconds=i / _STARTED_PER_SECOND)),
            )
            for i in range(count)
        ]
        return [run.id for run in runs]

    def jobs_of(self, run_id: UUID) -> list[FakeJob]:
        """Return every job that the fake Ray knows of a run."""
        return [
            job
            for job in self.ray.jobs.values()
            if (job.body.get("metadata") or {}).get("prefect.io/flow-run-id") == str(run_id)
        ]

    async def job_of(self, run_id: UUID) -> FakeJob:
        """Wait for the run's one job."""
        await wait_until(lambda: self.jobs_of(run_id), timeout=20, description="a job of the run")
        (job,) = self.jobs_of(run_id)
        return job

    async def running(self, **job_variables: Any) -> tuple[UUID, FakeJob]:
        """Start a run and wait until its worker watches a job that runs, and it is Running."""
        run_id = await self.start(**job_variables)
        job = await self.job_of(run_id)
        await self.play(run_id, StateType.RUNNING)
        await self.pool.wait_for_log(run_id, "is RUNNING")
        return run_id, job

    @contextmanager
    def worker_process(self, home: Path, *extra: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a worker that can be killed, and is missed within `MISSED_SECONDS`."""
        env = {
            "PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
            "PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS": str(STAGE_INTERVAL),
        }
        with worker_process(self.pool.name, home, *extra, env=env) as process:
            yield process

    @asynccontextmanager
    async def heir(self, **kwargs: Any) -> AsyncIterator[RayWorker]:
        """Run a worker in this process that misses others soon."""
        kwargs.setdefault("heartbeat_interval_seconds", HEARTBEAT_SECONDS)
        async with self.pool.working(**kwargs) as (worker,):
            yield worker

    async def play(
        self, run_id: UUID, state: StateType, name: str | None = None, message: str | None = None
    ) -> None:
        """Report a state as the driver would."""
        await report(self.pool, run_id, state, name, message)

    async def ends(
        self, run_id: UUID, state: StateType, text: str = "", *, seconds: float = 20
    ) -> FlowRun:
        """Wait for the run's end and check it: its state, and what its message says."""
        run = await self.pool.wait_for(run_id, seconds=seconds)
        assert run.state is not None
        assert run.state.type == state, run.state
        assert text in (run.state.message or ""), run.state.message
        return run

    async def is_served(self) -> None:
        """Check that the worker still does its work, with a run from start to end."""
        run_id, job = await self.running()
        job.set("FAILED", driver_exit_code=7)
        await self.ends(run_id, StateType.CRASHED, "exit code 7")


async def report(
    pool: Pool,
    run_id: UUID,
    state: StateType,
    name: str | None = None,
    message: str | None = None,
) -> None:
    """Report a state as the driver would."""
    reported: State[Any] = State(
        type=state,
        name=name or state.value.title(),
        message=message,
        state_details=StateDetails(pause_reschedule=name == "Suspended"),  # as Prefect does
    )
    await pool.client.set_flow_run_state(run_id, reported, force=True)


@asynccontextmanager
async def new_stage(**fake: Any) -> AsyncIterator[Stage]:
    """Set up a fake Ray, whose jobs run until a test ends them, and a pool for it."""
    async with FakeRay(**fake) as ray, new_pool({"address": ray.address}) as pool:
        ray.on_submit = RUNS_FOREVER
        yield Stage(pool, ray)
