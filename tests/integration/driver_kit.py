"""What the tests of the driver share: runs of `driver_flows.py` and how they end."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.shared.ids import InfrastructurePid, attempt_name, present_claim
from tests.integration.harness import Pool
from tests.waiting import wait_until

START_SECONDS = 60
DRIVER_SECONDS = 60


async def start(
    pool: Pool,
    flow_name: str,
    folder: Path,
    *,
    parameters: dict[str, Any] | None = None,
    **deploy: Any,
) -> UUID:
    """Schedule a run of one of the driver's flows for now; it leaves its traces in a folder."""
    folder.mkdir(exist_ok=True)
    deploy.setdefault("entrypoint", f"driver_flows.py:{flow_name}")
    return await pool.start(flow_name, {"folder": str(folder), **(parameters or {})}, **deploy)


async def begin(
    pool: Pool, flow_name: str, folder: Path, *, trace: str = "pids", **options: Any
) -> UUID:
    """Start a run and wait until its user code runs."""
    run_id = await start(pool, flow_name, folder, **options)
    await begun(pool, run_id, folder, trace)
    return run_id


async def begun(pool: Pool, run_id: UUID, folder: Path, trace: str = "pids") -> None:
    """Wait until a run has left a trace of its user code."""

    async def there() -> bool:
        run = await pool.read(run_id)
        assert run.state is None or not run.state.is_final(), run.state
        return (folder / trace).exists()

    await wait_until(there, timeout=START_SECONDS, description=f"{trace} of the flow")


async def ends(
    pool: Pool, run_id: UUID, state: StateType, text: str = "", *, seconds: float = 60
) -> FlowRun:
    """Wait for the end of a run and check it: its state, and what its message says."""
    run = await pool.wait_for(run_id, seconds=seconds)
    assert run.state is not None
    assert run.state.type == state, f"{run.state!r}\n" + "\n".join(await pool.logs(run_id))
    assert text in (run.state.message or ""), run.state.message
    return run


async def ended_job(pool: Pool, run_id: UUID, *, seconds: float = 30) -> JobDetails:
    """Wait until the run's present job has ended, and return it."""
    pid = InfrastructurePid.parse((await pool.read(run_id)).infrastructure_pid or "")
    async with JobsClient(Connection(pid.cluster.name)) as client:

        async def there() -> JobDetails | None:
            job = await client.get(pid.submission_id)
            return job if job.is_terminal else None

        job = await wait_until(there, timeout=seconds, description="the job to have ended")
    assert job is not None
    return job


def traces(folder: Path, name: str) -> list[str]:
    """Return the lines that the flow or its hooks have left under a name."""
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


async def claimed(pool: Pool, flow_name: str, folder: Path, **options: Any) -> tuple[UUID, str]:
    """Do what a worker does before it submits a run; return the run and its attempt."""
    run_id = await start(pool, flow_name, folder, **options)
    await pool.client.set_flow_run_state(run_id, Pending())
    return run_id, await present_attempt(pool, run_id)


async def present_attempt(pool: Pool, run_id: UUID) -> str:
    claim = present_claim(await pool.client.read_flow_run_states(run_id))
    assert claim is not None
    return attempt_name(claim)


def driver(
    run_id: UUID, attempt: str, *, api_url: str | None = None, **env: str
) -> "subprocess.Popen[str]":
    """Start a driver as Ray would."""
    return subprocess.Popen(
        [sys.executable, "-m", "prefect_ray_worker.driver", str(run_id), attempt],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PREFECT_"))},
            "PREFECT_API_URL": api_url or PREFECT_API_URL.value(),
            "PREFECT__FLOW_RUN_ID": str(run_id),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=DRIVER_SECONDS)
    assert process.returncode == 0, said
    return said


async def force(pool: Pool, run_id: UUID, state: StateType, name: str) -> None:
    """Set a run's state as a user or an automation does."""
    await pool.client.set_flow_run_state(run_id, State(type=state, name=name), force=True)


async def children_of(pool: Pool, run_id: UUID) -> list[FlowRun]:
    """Return the subflow runs of a run."""
    of_run = FlowRunFilterParentFlowRunId(any_=[run_id])
    return await pool.client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=of_run)
    )


async def tasks_of(pool: Pool, run_id: UUID) -> list[TaskRun]:
    """Return the first page of a run's task runs."""
    of_run = TaskRunFilterFlowRunId(any_=[run_id])
    return await pool.client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=of_run))
