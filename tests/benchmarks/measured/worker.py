"""Submits and follows runs with one `RayWorker`, without Prefect's own loop.

    python -m tests.benchmarks.measured.worker <pool> <cluster> [at once] <file with ids of runs>

The cluster is an address, or job variables as JSON. On SQLite, that loop takes minutes for a
hundred runs. The file may still grow: an empty line is its end.

With `SERVES=<name>` in its environment the worker also does what it does for its pool besides runs:
it is online under that name, polls for scheduled runs, and looks for runs that no worker follows.
"""

import gc
import json
import math
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.worker import RayWorker
from tests.benchmarks.measured.meter import Meter

_HEARTBEAT_SECONDS = 30  # the default
_POLL_SECONDS = 10  # the default


async def ids_in(file: Path) -> AsyncIterator[str]:
    with file.open() as lines:
        written = ""
        while (written := written + lines.readline()) != "\n":
            if written.endswith("\n"):
                yield written.strip()
                written = ""
            else:
                await anyio.sleep(0.1)


async def main(pool: str, variables: dict[str, Any], at_once: float, file: Path) -> None:
    codes: list[int] = []
    name = os.environ.get("SERVES")
    worker = RayWorker(
        work_pool_name=pool, name=name, heartbeat_interval_seconds=_HEARTBEAT_SECONDS
    )
    worker.serves = name is not None
    meter = Meter(lambda: len(codes), lambda: len(worker._followed.followers))
    meter.time_callbacks()
    meter.count_requests(PREFECT_API_URL.value() or "")
    meter.serve()
    preparing, running = anyio.CapacityLimiter(4), anyio.CapacityLimiter(at_once)

    async def run(flow_run_id: str) -> None:
        async with running:
            async with preparing:
                flow_run = await worker.client.read_flow_run(UUID(flow_run_id))
                configuration = RayJobConfiguration(**variables)
                configuration.prepare_for_flow_run(flow_run)
            codes.append((await worker.run(flow_run, configuration)).status_code)

    async def heartbeats() -> None:
        while True:
            await anyio.sleep(_HEARTBEAT_SECONDS)
            await worker.sync_with_backend()

    async def polls() -> None:
        while worker.serves:
            await worker.get_and_submit_flow_runs()
            await anyio.sleep(_POLL_SECONDS)

    gc.freeze()  # as `RayWorker.start` does, which would claim runs itself
    async with worker, anyio.create_task_group() as tasks:
        tasks.start_soon(heartbeats, name="heartbeats")
        tasks.start_soon(polls, name="polls")
        async for flow_run_id in ids_in(file):
            tasks.start_soon(run, flow_run_id, name=f"run {flow_run_id}")


if __name__ == "__main__":
    pool, cluster, *at_once, file = sys.argv[1:]
    variables = json.loads(cluster) if cluster.startswith("{") else {"address": cluster}
    anyio.run(main, pool, variables, int(at_once[0]) if at_once else math.inf, Path(file))
