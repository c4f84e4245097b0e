"""A hundred runs on one worker: all reach the end, and the head is asked little."""

import time
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType

from tests.integration.stage import Stage
from tests.waiting import wait_until

RUNS = 100
# As many at once as a Prefect server on SQLite takes without turning some away for seconds.
BATCH = 10
WATCHED_SECONDS = 3.0


async def test_100_runs_on_one_worker(stage: Stage) -> None:
    jobs, asked = stage.ray.jobs, stage.ray.requests
    runs: list[UUID] = []
    began = time.monotonic()
    async with stage.pool.working():
        for done in range(BATCH, RUNS + 1, BATCH):
            runs += await stage.start_many(BATCH)
            await wait_until(
                lambda done=done: len(jobs) >= done, timeout=60, description=f"{done} submissions"
            )
        submitted = time.monotonic() - began
        await wait_until(
            lambda: asked[-1] == ("GET", "/api/jobs/"), description="only lists are asked for"
        )
        asked.reset()
        watched_since = time.monotonic()
        await wait_until(
            lambda: time.monotonic() - watched_since > WATCHED_SECONDS, description="some looks"
        )
        looks = dict(asked.by_kind)
        for i, job in enumerate(list(jobs.values()), start=1):
            job.set("FAILED", driver_exit_code=9)
            if i % BATCH == 0:
                await wait_until(
                    lambda i=i: _have_crashed(stage, runs, i),
                    timeout=60,
                    description=f"{i} settled",
                )
    took = time.monotonic() - began
    print(f"\n{RUNS} runs submitted after {submitted:.1f} s, settled after {took:.1f} s; ")
    print(f"looks in {WATCHED_SECONDS:g} s: {looks}; most requests at once: {asked.max_in_flight}")
    assert looks.keys() == {"GET /api/jobs/"}
    assert 5 <= looks["GET /api/jobs/"] <= WATCHED_SECONDS / (0.2 * 0.8) + 1
    assert asked.max_in_flight <= 4
    assert asked.number_of("POST") == 0, "nothing is submitted, stopped or deleted again"
    assert len(jobs) == RUNS


async def _have_crashed(stage: Stage, runs: list[UUID], wanted: int) -> bool:
    crashed = FlowRunFilter(
        id=FlowRunFilterId(any_=runs),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
    )
    found = await stage.pool.client.read_flow_runs(flow_run_filter=crashed, limit=RUNS)
    return len(found) >= wanted
