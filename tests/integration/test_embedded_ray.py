"""No address anywhere: the worker runs a Ray of its own, says so, and stops it."""

from pathlib import Path

import pytest
from prefect.settings import PREFECT_HOME

from prefect_ray_worker.clusters.local.cluster import LocalCluster
from prefect_ray_worker.clusters.local.state import state_directory
from prefect_ray_worker.errors import NotAuthorized
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import InfrastructurePid
from tests.integration.harness import new_pool
from tests.integration.worker_process import worker_process
from tests.real_ray import real_ray
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


async def test_embedded_ray_runs_a_deployment_and_ends_with_its_worker(
    prefect_settings: None, tmp_path: Path
) -> None:
    home = PREFECT_HOME.value()
    cluster = LocalCluster(state_directory(home))
    async with new_pool({}) as pool, pool.working():
        run_id = await pool.start("adds", {"left": 1, "right": 1})
        run = await pool.wait_for(run_id, seconds=120)
        assert run.state is not None
        assert run.state.is_completed()
        said = await pool.wait_for_log(run_id, "Started a local Ray cluster")
        assert "http://127.0.0.1:" in said
        pid = InfrastructurePid.parse(run.infrastructure_pid or "")
        info = await cluster.find()
        assert info is not None
        assert info.address == pid.cluster.name
        await pool.wait_for_log(run_id, "is SUCCEEDED")
    assert await cluster.find() is None


@pytest.mark.extra
async def test_embedded_ray_outlives_its_worker_while_jobs_run(
    prefect_settings: None, tmp_path: Path
) -> None:
    """Shutting a worker down leaves the jobs running; the next worker finds their Ray."""
    home = tmp_path / "home"
    cluster = LocalCluster(state_directory(home))
    marker = tmp_path / "runs"
    async with new_pool({}) as pool:
        with worker_process(pool.name, home) as process:
            run_id = await pool.start("sleeps", {"marker": str(marker)})
            await wait_until(marker.exists, timeout=90, description="the flow to run")
            process.terminate()
            await wait_until(
                lambda: process.poll() is not None, timeout=20, description="the worker to end"
            )
        first = await cluster.find()
        assert first is not None
        with worker_process(pool.name, home) as process:
            marker.unlink()
            run = await pool.wait_for(run_id, seconds=60)
            assert run.state is not None
            assert run.state.is_completed()
            again = await pool.start("adds")
            run = await pool.wait_for(again, seconds=90)
            assert (run.infrastructure_pid or "").startswith(first.address)
            await pool.wait_for_log(again, "is SUCCEEDED")
            process.terminate()
            await wait_until(
                lambda: process.poll() is not None, timeout=30, description="the worker to end"
            )
    assert await cluster.find() is None


@pytest.mark.extra
async def test_a_head_whose_user_has_a_token_is_reached_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray 2.60 wants the token of `~/.ray/auth_token` also where `RAY_AUTH_MODE` is unset."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-the-home\n")
    with real_ray(env={"HOME": str(tmp_path), "RAY_AUTH_MODE": None}) as ray:
        plain = Connection(ray.address)
        async with JobsClient(plain) as client:
            with pytest.raises(NotAuthorized):
                await client.list()
        monkeypatch.setenv("HOME", str(tmp_path))
        async with JobsClient(plain.with_token_of_environment(True)) as client:
            assert await client.list() == []
