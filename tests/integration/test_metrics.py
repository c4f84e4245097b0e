"""The worker's metrics, as Prometheus reads them from Prefect's own endpoint."""

import re
from pathlib import Path

import httpx
import pytest
from prefect.client.schemas.objects import StateType
from prometheus_client.parser import text_string_to_metric_families

from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.driver_kit import begin, ends, start
from tests.integration.harness import Pool
from tests.integration.stage import STAGE_INTERVAL, Stage
from tests.integration.worker_process import worker_process
from tests.ports import free_port
from tests.waiting import wait_until


class Endpoint:
    """The endpoint of a worker that was just started."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    def read(self, name: str, **labels: str) -> float:
        """Return a sample, or 0 if its metric has none yet."""
        text = httpx.get(self._url, trust_env=False).text
        families = list(text_string_to_metric_families(text))
        assert re.sub("_(total|count|sum|bucket)$", "", name) in {f.name for f in families}
        samples = [s for family in families for s in family.samples]
        wanted = [s for s in samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(s.value for s in wanted)


async def test_what_prometheus_reads(stage: Stage, tmp_path: Path) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    port = free_port()
    env = {
        "PREFECT_CLIENT_METRICS_ENABLED": "true",
        "PREFECT_CLIENT_METRICS_PORT": str(port),
        "PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS": str(STAGE_INTERVAL),
    }
    endpoint = Endpoint(port)
    with worker_process(stage.pool.name, tmp_path, env=env):
        run_id = await stage.start()
        job = await stage.job_of(run_id)
        await stage.pool.wait_for_log(run_id, "is PENDING")
        assert endpoint.read("prefect_ray_submissions_total", disposition="submitted") == 1
        assert endpoint.read("prefect_ray_active_jobs", status="pending") == 1
        address = stage.ray.address
        assert endpoint.read("prefect_ray_poll_seconds_count", address=address) >= 1
        assert endpoint.read("prefect_ray_poll_age_seconds", address=address) < 60
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED)
        assert endpoint.read("prefect_ray_crashes_total", category="DriverExited") == 1
        await wait_until(
            lambda: endpoint.read("prefect_ray_active_jobs") == 0, description="no active job"
        )
        assert endpoint.read("prefect_ray_log_lines_total") == 0


@pytest.mark.ray
@pytest.mark.extra
async def test_runs_that_serve_metrics_do_not_fight_for_the_port(
    pool: Pool, tmp_path: Path
) -> None:
    """Every run ended with exit code 1, `Address already in use`, and every run with tasks did."""
    port = free_port()
    env = {"PREFECT_CLIENT_METRICS_ENABLED": "true", "PREFECT_CLIENT_METRICS_PORT": str(port)}
    async with pool.working():
        first = await begin(pool, "waits_for_a_program", tmp_path, job_variables={"env": env})
        second = await start(
            pool,
            "fans_out",
            tmp_path,
            entrypoint="fanning.py:fans_out",
            job_variables={"env": env},
        )
        await ends(pool, second, StateType.COMPLETED, seconds=120)
        assert "serves no client metrics" in "\n".join(await pool.logs(second))
        assert Endpoint(port).read("python_info") == 1
        await pool.cancel(first)
        await ends(pool, first, StateType.CANCELLED, seconds=60)
