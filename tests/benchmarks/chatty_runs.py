"""How quick the Jobs API of a real Ray stays beside runs that print all the time.

    python -m tests.benchmarks.chatty_runs [runs]

The jobs print 20 lines a second each. The list of jobs is asked for again and again, first while
nobody reads the logs, then while they are forwarded to a real Prefect server.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import anyio

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from tests.benchmarks.logs import new_run, submit
from tests.benchmarks.record import Chart, record
from tests.bridged import bridged
from tests.integration.harness import settings_of
from tests.prefect_server import prefect_server
from tests.real_ray import real_ray
from tests.waiting import wait_until

CHATTY = (
    "import time\n"
    "for i in range(100_000): print(f'line {i} of a chatty job', flush=True); time.sleep(.05)"
)
ASKED = 200


async def latencies(client: JobsClient) -> list[float]:
    """Ask for the list of jobs, and return how long each answer took, in seconds."""
    took: list[float] = []
    for _ in range(ASKED):
        began = time.perf_counter()
        await client.list()
        took.append(time.perf_counter() - began)
        await anyio.sleep(0.1)
    return took


def told(name: str, took: list[float]) -> None:
    ordered = sorted(took)
    print(
        f"{name:16} median {statistics.median(took) * 1000:6.1f} ms, "
        f"p99 {ordered[int(len(ordered) * 0.99)] * 1000:6.1f} ms"
    )


async def main(runs: int) -> None:
    """Measure without forwarding and with it, and print both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            prefect_server(folder / "server") as server,
            real_ray() as ray,
            settings_of(server.api_url, folder / "home"),
        ):
            jobs = {f"chatty-{number}": await new_run() for number in range(runs)}
            async with JobsClient(Connection(ray.address)) as client:
                for job in jobs:
                    await submit(ray.address, job, CHATTY)

                async def all_run() -> bool:
                    return all(job.status == "RUNNING" for job in await client.list())

                await wait_until(all_run, timeout=120, description="all jobs run")
                before = await latencies(client)
                async with bridged(ray.address, jobs, look_every=1) as bridges:
                    during = await latencies(client)
                    lines = sum(running.bridge.lines_forwarded for running in bridges)
                for job in jobs:
                    await client.stop(job)
    print(f"{runs} chatty jobs on a real Ray; {lines} lines forwarded")
    told("nobody reads", before)
    told("forwarded", during)
    print(f"ratio of medians {statistics.median(during) / statistics.median(before):.2f}")
    medians = {
        "logs are forwarded": statistics.median(during) * 1000,
        "nobody reads logs": statistics.median(before) * 1000,
    }
    record([Chart(f"A list of jobs, while {runs} jobs print 20 lines a second", "ms", medians)])


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 10)
