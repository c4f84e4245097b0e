"""The log bridge on a real Ray and a real Prefect server.

    python -m tests.benchmarks.logs [lines]

A flow prints so many lines as fast as it can, while a bridge forwards them.
Printed at the end:

* lines per second, from the first line in Prefect to the last;
* lag: from a line's writing to its being visible in Prefect, for a line at a time; and from the
  job's end to its last line in Prefect, for the burst;
* memory: by how much this process, which runs the bridge, has grown at its peak.
"""

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort

from prefect_ray_worker.prefect_api.logs import LOGGER_NAME
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from tests.benchmarks.record import Chart, record
from tests.bridged import bridged
from tests.integration.harness import settings_of
from tests.prefect_server import prefect_server
from tests.real_ray import real_ray

BURST = "import sys\nfor i in range({lines}): print(f'line {{i:07}} ' + '.' * 80)"
TICKS = (
    "import time\n"
    "for i in range({lines}): print(f'{{time.time()}} tick', flush=True); time.sleep(.5)"
)
TICK_COUNT = 30


async def forward(address: str, run_id: UUID, submission_id: str) -> dict[str, float]:
    """Forward one job's log, and measure what that took."""
    before = _peak()
    async with (
        JobsClient(Connection(address)) as jobs,
        bridged(address, {submission_id: run_id}, look_every=1) as [running],
    ):
        await running.done.wait()
        ended = time.time()
        details = await jobs.get(submission_id)
    return {
        "lines": running.bridge.lines_forwarded,
        "bytes": running.bridge.bytes_read,
        "after_end": ended - (details.end_time or 0) / 1000,
        "seconds": ended - (details.start_time or 0) / 1000,
        "growth": _peak() - before,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def submit(address: str, name: str, code: str) -> None:
    async with JobsClient(Connection(address)) as jobs:
        await jobs.submit(
            JobSubmitRequest(
                entrypoint=f'exec python -c "{code}"',
                submission_id=name,
                runtime_env={},
                metadata={},
            )
        )


async def new_run() -> UUID:
    from prefect import flow

    @flow(name="bench-logs")
    def nothing() -> None: ...

    async with get_client() as client:
        return (await client.create_flow_run(nothing)).id


async def lags(run_id: UUID) -> list[float]:
    """Watch a run's logs arrive, and return how old each was when it could be seen."""
    seen: dict[str, float] = {}
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    async with get_client() as client:
        while len(seen) < TICK_COUNT:
            logs = await client.read_logs(wanted, sort=LogSort.TIMESTAMP_DESC)
            now = time.time()
            for log in logs:
                if log.name.startswith(LOGGER_NAME) and log.message.endswith(" tick"):
                    seen.setdefault(log.message, now - float(log.message.split()[0]))
            await anyio.sleep(0.1)
    return list(seen.values())


async def missing(run_id: UUID, lines: int) -> int:
    """Count the lines that are not in Prefect exactly once, in order."""
    found: list[str] = []
    read = 0
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    async with get_client() as client:
        while page := await client.read_logs(wanted, offset=read, limit=200):
            read += len(page)
            found += [line[:12] for log in page for line in log.message.split("\n")]
    expected = [f"line {i:07}" for i in range(lines)]
    numbered = [line for line in found if line.startswith("line ")]
    return 0 if numbered == expected else len(set(expected) ^ set(numbered)) or 1


async def main(lines: int) -> None:
    """Measure a burst and single lines, and print what came out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            prefect_server(folder / "server") as server,
            real_ray() as ray,
            settings_of(server.api_url, folder / "home"),
        ):
            burst = await new_run()
            await submit(ray.address, "burst", BURST.format(lines=lines))
            result: dict[str, Any] = await forward(ray.address, burst, "burst")
            wrong = await missing(burst, lines)
            ticks = await new_run()
            await submit(ray.address, "ticks", TICKS.format(lines=TICK_COUNT))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(forward, ray.address, ticks, "ticks")
                seen = await lags(ticks)
    print(f"{lines} lines, {result['bytes'] / 1e6:.1f} MB; {wrong} missing, doubled or misplaced")
    print(f"throughput  {result['lines'] / result['seconds']:.0f} lines/s from the submission on")
    print(f"after end   {result['after_end']:.1f} s from the job's end until all is in Prefect")
    print(f"memory      {result['growth'] / 1e6:.1f} MB more at the peak")
    print(f"lag         median {statistics.median(seen):.2f} s, worst {max(seen):.2f} s (one line)")
    rate = {"from the job to Prefect": result["lines"] / result["seconds"]}
    lag = {"median": statistics.median(seen), "worst": max(seen)}
    record(
        [
            Chart(f"A burst of {lines:,} lines", "lines/s", rate, "higher"),
            Chart("From print to Prefect, for a single line", "s", lag),
        ]
    )


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
