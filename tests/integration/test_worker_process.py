"""The worker as users run it: a process, started, stopped and left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL

from tests.integration.harness import QUERY_SECONDS, Pool
from tests.integration.test_cancelling_and_timeouts import job_of
from tests.integration.worker_process import worker_process
from tests.real_ray import RealRay
from tests.waiting import patience, wait_until

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    "ending", [pytest.param(signal.SIGINT, marks=pytest.mark.extra), signal.SIGTERM]
)
async def test_shutting_down_leaves_the_jobs_running(
    pool: Pool, tmp_path: Path, ending: signal.Signals
) -> None:
    marker = tmp_path / "runs"
    with worker_process(pool.name, tmp_path / "home") as process:
        run_id = await pool.start("sleeps", {"marker": str(marker)})
        await wait_until(marker.exists, timeout=90, description="the flow to run")
        process.send_signal(ending)
        await wait_until(
            lambda: process.poll() is not None, timeout=30, description="the worker to end"
        )
    assert await pool.state(run_id) == StateType.RUNNING
    assert not (await job_of(pool, run_id)).is_terminal
    marker.unlink()
    run = await pool.wait_for(run_id, seconds=60)
    assert run.state is not None
    assert run.state.type == StateType.COMPLETED


async def test_worker_of_a_type_creates_its_pool_and_never_imports_ray(
    pool: Pool, ray_cluster: RealRay, tmp_path: Path
) -> None:
    """A whole run through `prefect worker start --type ray`, and `ray` stays out of the process."""
    script = (
        "import sys, runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['prefect'] + sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_module('prefect', run_name='__main__')\n"
        "finally:\n"
        "    print('IMPORTED-RAY', any(m == 'ray' or m.startswith('ray.') for m in sys.modules))\n"
    )
    name = f"{pool.name}-by-type"
    home = tmp_path / "home"
    home.mkdir()
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PREFECT_HOME": str(home),
        "PREFECT_WORKER_QUERY_SECONDS": QUERY_SECONDS,
        "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS": ray_cluster.address,
    }
    process = await anyio.open_process(
        [sys.executable, "-c", script, "worker", "start", "--pool", name, "--type", "ray"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        made = Pool(pool.client, name, {})

        async def exists() -> bool:
            return any(p.name == name for p in await pool.client.read_work_pools())

        await wait_until(exists, timeout=60, description="the worker to create its pool")
        run_id = await made.start("adds")
        run = await made.wait_for(run_id, seconds=90)
        assert run.state is not None
        assert run.state.type == StateType.COMPLETED
        process.send_signal(signal.SIGINT)
        with anyio.fail_after(15 * patience()):
            await process.wait()
        assert process.stdout is not None
        output = b"".join([chunk async for chunk in process.stdout]).decode()
        assert "IMPORTED-RAY False" in output
    finally:
        if process.returncode is None:
            process.kill()
        await process.aclose()
        await pool.client.delete_work_pool(name)


def test_a_bad_setting_ends_prefect_worker_start_in_one_line(
    prefect_settings: None, tmp_path: Path
) -> None:
    setting = "PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS"
    options = ("--type", "ray", "--no-create-pool-if-not-found")
    with worker_process("no-such-pool", tmp_path, *options, env={setting: "often"}) as process:
        assert process.wait(60) == 1
    (said,) = (tmp_path / "worker.log").read_text().splitlines()
    assert said.startswith(f"The worker cannot start: {setting}: ")


def prefect(*args: str) -> str:
    """Run a `prefect` command as a user does, and return what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *args],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_commands_need_no_import_by_the_user(prefect_settings: None, tmp_path: Path) -> None:
    name = f"cli-{tmp_path.name}"
    template = tmp_path / "template.json"
    prefect("work-pool", "get-default-base-job-template", "--type", "ray", "--file", str(template))
    assert '"entrypoint_num_cpus"' in template.read_text()
    assert name in prefect("work-pool", "create", name, "--type", "ray")
