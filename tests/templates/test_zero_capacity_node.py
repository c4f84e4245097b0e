"""The zero-capacity node, with real processes: joins, runs flows, brings no CPUs, ends as one."""

import signal
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.workers.process import ProcessWorker

from tests.integration.harness import Pool
from tests.ports import free_port
from tests.real_ray import real_ray
from tests.templates.folders import TEMPLATES
from tests.templates.processes import node_options, running, until_nodes

pytestmark = [pytest.mark.ray, pytest.mark.extra]

START = TEMPLATES / "zero-capacity-node" / "start.sh"
FLOWS = TEMPLATES / "prefect-yaml"
NAME = "process-on-ray"


async def test_flow_of_a_process_worker_uses_the_cluster(
    prefect_settings: None, tmp_path: Path
) -> None:
    template = ProcessWorker.get_default_base_job_template()
    async with get_client() as client:
        pool = WorkPoolCreate(name=NAME, type="process", base_job_template=template)
        await client.create_work_pool(pool)
        with real_ray(num_cpus=1) as ray:
            env = {
                "RAY_HEAD": ray.gcs_address,
                "WORK_POOL": NAME,
                "RAY_START_OPTIONS": node_options(),
                "PREFECT_WORKER_WEBSERVER_PORT": str(free_port()),
            }
            with running(["bash", str(START)], tmp_path, ray.temp_dir, env) as process:
                nodes = await until_nodes(ray, 2)
                assert sorted(node.get("CPU", 0) for node in nodes) == [0, 1]
                run_id = await Pool(client, NAME, {}).start(
                    "nightly",
                    entrypoint="flows/nightly.py:nightly",
                    pull_steps=[
                        {
                            "prefect.deployments.steps.set_working_directory": {
                                "directory": str(FLOWS)
                            }
                        }
                    ],
                )
                run = await Pool(client, NAME, {}).wait_for(run_id, seconds=90)
                assert run.state is not None
                assert run.state.is_completed(), (tmp_path / "output.log").read_text()[-3000:]
                family = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGTERM)
                # A Ray node that is told to end lets its workers drain for 30 s at most.
                process.wait(60)
                _, left = psutil.wait_procs(family, timeout=20)
                assert [p for p in left if p.is_running() and p.status() != "zombie"] == []
        await client.delete_work_pool(NAME)


@pytest.mark.parametrize("name", ["RAY_HEAD", "WORK_POOL", "PREFECT_API_URL"])
async def test_missing_setting_is_named(name: str, tmp_path: Path, prefect_settings: None) -> None:
    env = {"RAY_HEAD": "head:6379", "WORK_POOL": NAME, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    with running(["bash", str(START)], tmp_path, tmp_path, {**env, name: ""}) as process:
        assert process.wait(10) != 0
    assert name in (tmp_path / "output.log").read_text()
