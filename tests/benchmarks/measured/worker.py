"""Submits and follows runs with one `RayWorker`, without Prefect's own loop.

    python -m tests.benchmarks.measured.worker <pool> <cluster> [at once] <file with ids of runs>

The cluster is an address, or job variables as JSON. On SQLite, that loop takes minutes for a
hundred runs. The file may still grow: an empty line is its end.
"""

import gc
import json
import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.worker import RayWorker
from tests.benchmarks.measured.meter import Meter

_HEARTBEAT_SECONDS = 30  # the default


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
    meter = Meter(lambda: len(codes))
    meter.time_callbacks()
    meter.serve()
    preparing, running = anyio.CapacityLimiter(4), anyio.CapacityLimiter(at_once)
    worker = RayWorker(work_pool_name=pool, heartbeat_interval_seconds=_HEARTBEAT_SECONDS)

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

    gc.freeze()  # as `RayWorker.start` does, which would claim runs itself
    async with worker, anyio.create_task_group() as tasks:
        tasks.start_soon(heartbeats, name="heartbeats")
        async for flow_run_id in ids_in(file):
            tasks.start_soon(run, flow_run_id, name=f"run {flow_run_id}")


if __name__ == "__main__":
    pool, cluster, *at_once, file = sys.argv[1:]
    variables = json.loads(cluster) if cluster.startswith("{") else {"address": cluster}
    anyio.run(main, pool, variables, int(at_once[0]) if at_once else math.inf, Path(file))
