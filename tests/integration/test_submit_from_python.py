"""`worker.submit(flow)` and flows bound to infrastructure: accepted is returned, not awaited.

Each submit prints `ResourceWarning: unclosed transport`: Prefect asks the server for its default
result storage with a client that it never closes (`_aread_server_default_result_storage_block_id`
in `prefect.results`, 3.8.8).
"""

import sys
import time
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import StateType, WorkPoolStorageConfiguration
from prefect.flows import Flow, bind_flow_to_infrastructure

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import InfrastructurePid
from prefect_ray_worker.worker import RayWorker
from tests.integration.harness import Pool
from tests.waiting import wait_until

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
LAUNCHER = {"upload": [sys.executable], "execution": ["python"]}


@flow
def waits_for_a_file(path: str) -> str:
    # A flow that is shipped as a bundle has to bring its imports along.
    import time
    from pathlib import Path

    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return "seen"


@pytest.fixture
async def storing_pool(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool with a folder for bundles, as `prefect work-pool storage configure` makes one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    step = {"folder": str(bundles)}
    await pool.client.update_work_pool(
        pool.name,
        WorkPoolUpdate(
            storage_configuration=WorkPoolStorageConfiguration(
                bundle_upload_step={"tests.integration.bundles.upload": step},
                bundle_execution_step={"tests.integration.bundles.execute": step},
            )
        ),
    )
    return pool


def bound(pool: Pool) -> "Flow[..., str]":
    return bind_flow_to_infrastructure(
        waits_for_a_file,
        work_pool=pool.name,
        worker_cls=RayWorker,
        job_variables={**pool.defaults, "env": {"PYTHONPATH": str(ROOT)}},
        launcher=LAUNCHER,
    )


async def test_submit_returns_when_ray_has_the_job(storing_pool: Pool, tmp_path: Path) -> None:
    signal = tmp_path / "go"
    async with RayWorker(work_pool_name=storing_pool.name) as worker:
        future = await worker.submit(
            bound(storing_pool),
            parameters={"path": str(signal)},
            job_variables={**storing_pool.defaults, "env": {"PYTHONPATH": str(ROOT)}},
        )

        async def accepted() -> bool:
            return bool((await storing_pool.read(future.flow_run_id)).infrastructure_pid)

        await wait_until(accepted, timeout=30, description="the job to be accepted")
        run = await storing_pool.read(future.flow_run_id)
        pid = InfrastructurePid.parse(run.infrastructure_pid or "")
        async with JobsClient(Connection(pid.cluster.name)) as client:
            assert not (await client.get(pid.submission_id)).is_terminal
        assert run.state is not None
        assert not run.state.is_final()
        signal.touch()
        done = await storing_pool.wait_for(future.flow_run_id)
    assert done.state is not None
    assert done.state.type == StateType.COMPLETED


@pytest.mark.extra
async def test_closing_the_worker_does_not_wait_for_the_run(
    storing_pool: Pool, tmp_path: Path
) -> None:
    signal = tmp_path / "go"
    async with RayWorker(work_pool_name=storing_pool.name) as worker:
        future = await worker.submit(
            bound(storing_pool),
            parameters={"path": str(signal)},
            job_variables={**storing_pool.defaults, "env": {"PYTHONPATH": str(ROOT)}},
        )
        began = time.monotonic()
    assert time.monotonic() - began < 30
    run = await storing_pool.read(future.flow_run_id)
    assert run.infrastructure_pid, "closing waits for the submission, and for no more"
    assert run.state is not None
    assert not run.state.is_final()
    signal.touch()
    done = await storing_pool.wait_for(future.flow_run_id)
    assert done.state is not None
    assert done.state.type == StateType.COMPLETED
