"""Many runs on one worker: all reach the end, and the head is asked little.

A thousand are measured by `python -m tests.benchmarks.thousand_runs`.
"""

import re
import time
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Pending, Scheduled

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.worker import RayWorker
from tests.integration.stage import STAGE_INTERVAL, Stage
from tests.waiting import wait_until

RUNS = 20
LOOKS = 3
BURST = 12
# A Prefect server on SQLite turns writers away for seconds when more of them come at once.
ENDS_AT_ONCE = 10


async def test_burst_of_one_deployment_reads_it_few_times(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's worker read it twice for each run, and its flow once."""
    read: list[str] = []
    send = httpx.AsyncClient.send

    async def seen(self: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
        if request.method == "GET" and re.search(r"/(deployments|flows)/[^/]+$", request.url.path):
            read.append(request.url.path)
        return await send(self, request, **more)

    deployment = await stage.pool.deploy("adds")
    create = partial(stage.pool.client.create_flow_run_from_deployment, state=Scheduled())
    for _ in range(BURST):
        await create(deployment)
    monkeypatch.setattr(httpx.AsyncClient, "send", seen)
    async with stage.pool.working():
        await wait_until(lambda: len(stage.ray.jobs) == BURST, timeout=60, description="all jobs")
    print(f"\n{BURST} runs: {len(read)} reads of the deployment and of the flow")
    assert len(read) < BURST * 3 / 2


@pytest.mark.extra
async def test_many_runs_on_one_worker(stage: Stage) -> None:
    """Without Prefect's own loop of the worker: on SQLite, that takes minutes for many runs."""
    jobs, asked = stage.ray.jobs, stage.ray.requests
    deployment = await stage.pool.deploy("adds")
    create = partial(stage.pool.client.create_flow_run_from_deployment, state=Pending())
    runs = [await create(deployment) for _ in range(RUNS)]
    ended: list[FlowRun] = []

    async def run(worker: RayWorker, flow_run: FlowRun) -> None:
        configuration = RayJobConfiguration(address=stage.ray.address)
        configuration.prepare_for_flow_run(flow_run)
        await worker.run(flow_run, configuration)
        ended.append(flow_run)

    began = time.monotonic()
    async with stage.pool.worker() as worker, anyio.create_task_group() as tasks:
        for flow_run in runs:
            tasks.start_soon(run, worker, flow_run)
        await wait_until(lambda: len(jobs) == RUNS, timeout=60, description="all submissions")
        submitted = time.monotonic() - began
        at_once = asked.max_in_flight
        lists = asked.number_of("GET", "/api/jobs/$")
        await anyio.sleep(STAGE_INTERVAL * 2)
        asked.reset()
        watched_from = time.monotonic()
        # However slow this machine is: the poller gives a slow head a longer rest.
        await wait_until(
            lambda: asked.number_of("GET", "/api/jobs/$") >= LOOKS, description="looks"
        )
        watched = time.monotonic() - watched_from
        looks = dict(asked.by_kind)
        for i, job in enumerate(list(jobs.values())):
            job.set("FAILED", driver_exit_code=9)
            await wait_until(
                lambda i=i: len(ended) >= i - ENDS_AT_ONCE, timeout=60, description=f"{i} ends"
            )
    took = time.monotonic() - began
    print(
        f"\n{RUNS} runs: submitted after {submitted:.1f} s ({lists} lists, {at_once} requests at "
        f"once), settled after {took:.1f} s; in {watched:.1f} s of watching {looks}, then "
        f"{asked.max_in_flight} at once"
    )
    for flow_run in runs:
        assert await stage.pool.state(flow_run.id) == StateType.CRASHED
    assert at_once <= 16, "the client's pool of connections is the bound"
    # A log is asked for at its node's agent, which is no business of the head.
    assert looks.keys() - {"GET /logs/{id}"} == {"GET /api/jobs/"}, "one look for all runs"
    assert looks.get("GET /logs/{id}", 0) <= RUNS * (watched / 2 + 1)
    assert looks["GET /api/jobs/"] <= watched / (STAGE_INTERVAL * 0.8) + 1
    assert asked.max_in_flight <= 4
    assert asked.number_of("POST") == 0, "nothing is submitted or stopped again"
    assert len(jobs) == RUNS
