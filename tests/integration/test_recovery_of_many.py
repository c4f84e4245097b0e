"""Recovery in a large pool: most looks cover a worker's own runs only, and nothing is missed."""

import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.runs.recovery import reconcile
from tests.integration.harness import set_timing
from tests.integration.stage import MISSED_SECONDS, Stage
from tests.waiting import wait_until

LOOKS_SECONDS = 5.0
"""Of a worker with heartbeats of 2 s: about five looks, and five sweeps."""


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Gather what this process asks Prefect about all active runs of a pool."""
    found: list[dict[str, Any]] = []
    send = httpx.AsyncClient.send

    async def seen(self: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
        if request.url.path.endswith("/flow_runs/filter"):
            body = json.loads(request.content)
            if "AwaitingRetry" in str(body):
                found.append(body)
        return await send(self, request, **more)

    monkeypatch.setattr(httpx.AsyncClient, "send", seen)
    return found


@pytest.mark.extra
async def test_worker_of_a_large_pool_lists_all_runs_rarely_and_misses_none(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: list[dict[str, Any]]
) -> None:
    """Ten workers with 10,000 runs asked for more lists than a Prefect server can answer."""
    set_timing(monkeypatch, sweep=1.0)
    monkeypatch.setattr(reconcile, "_FEW_RUNS", 0)  # a large pool begins with one run
    monkeypatch.setattr(reconcile, "_REST_FACTOR", 1e9)
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id, job = await stage.running()
        async with stage.heir(name="second"):
            await wait_until(lambda: lists, timeout=20, description="the first look")
            await anyio.sleep(1)  # for its second page
            lists.clear()
            await anyio.sleep(LOOKS_SECONDS)
            assert len(lists) == 0
            process.kill()
            await stage.pool.wait_for_log(run_id, "its worker has gone", seconds=MISSED_SECONDS)
            deleted, its_job = await stage.running()
            await stage.pool.client.delete_flow_run(deleted)
            await wait_until(
                lambda: its_job.stop_requests, timeout=20, description="the job to be stopped"
            )
            await anyio.sleep(1)  # for the look that the dead worker caused
            lists.clear()
            await anyio.sleep(LOOKS_SECONDS)
            assert len(lists) == 0, "also the sweep asks only about the runs of its jobs"
            job.set("FAILED", driver_exit_code=7)
            await stage.ends(run_id, StateType.CRASHED, "exit code 7")
