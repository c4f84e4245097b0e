"""From "create run" to the first line of user code, with default settings, side by side.

    python -m tests.benchmarks.start [rounds]

Three ways in one run: our worker, Prefect's process worker, and a bare Ray Job without Prefect.
Both workers poll every 10 s, Prefect's default, and the runs come at random moments of that
interval, so that its phase averages out. Prints the median, the middle half and the range of each,
and the ratios.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from tests.benchmarks.record import Chart, record
from tests.integration.harness import Pool, new_pool, settings_of
from tests.integration.worker_process import worker_process
from tests.prefect_server import prefect_server
from tests.real_ray import real_ray
from tests.waiting import wait_until

POLL_SECONDS = "10"
_SETTLE_SECONDS = 15
_POOL_TYPE = "process"

Way = Callable[[Path], Awaitable[float]]


def way_of(pool: Pool) -> Way:
    """Return a function that measures one run through a pool's worker."""

    async def measure(folder: Path) -> float:
        marker = folder / uuid4().hex
        deployment = await pool.deploy("bench")
        began = time.time()
        run = await pool.client.create_flow_run_from_deployment(
            deployment, parameters={"marker": str(marker)}
        )
        await wait_until(marker.exists, timeout=90, description="the flow to run")
        marker.with_suffix(".go").touch()
        await pool.wait_for(run.id, StateType.COMPLETED)
        return float(marker.read_text().split()[0]) - began

    return measure


def way_of_ray(address: str) -> Way:
    """Return a function that measures one job without Prefect."""

    async def measure(folder: Path) -> float:
        marker = folder / uuid4().hex
        code = f"import time; open({str(marker)!r}, 'w').write(str(time.time()))"
        request = JobSubmitRequest(
            entrypoint=f'python -c "{code}"',
            submission_id=marker.name,
            runtime_env={},
            metadata={},
        )
        async with JobsClient(Connection(address)) as client:
            began = time.time()
            await client.submit(request)
            await wait_until(
                lambda: marker.exists() and marker.read_text(), timeout=60, description="the job"
            )
        return float(marker.read_text()) - began

    return measure


async def process_pool(client: PrefectClient) -> Pool:
    """Create a pool of Prefect's own kind, whose runs are processes of its worker's machine."""
    name = f"process-{uuid4().hex[:8]}"
    await client.create_work_pool(WorkPoolCreate(name=name, type=_POOL_TYPE))
    return Pool(client, name, {})


async def main(rounds: int) -> None:
    """Measure the three ways in turn and print what came out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            prefect_server(folder / "server") as server,
            real_ray(env={"PREFECT_HOME": str(folder / "driver-home")}) as ray,
            settings_of(server.api_url, folder / "home"),
        ):
            async with new_pool({"address": ray.address}) as ours:
                theirs = await process_pool(ours.client)
                poll = {"PREFECT_WORKER_QUERY_SECONDS": POLL_SECONDS}
                with (
                    worker_process(ours.name, folder / "ours", env=poll),
                    worker_process(theirs.name, folder / "theirs", env=poll),
                ):
                    await anyio.sleep(_SETTLE_SECONDS)
                    ways = {
                        "our worker": way_of(ours),
                        "Prefect's process worker": way_of(theirs),
                        "a bare Ray Job": way_of_ray(ray.address),
                    }
                    print_results(await measure_all(ways, folder, rounds), rounds)


async def measure_all(ways: dict[str, Way], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Measure each way once in every round; the first round only warms caches."""
    results: dict[str, list[float]] = {way: [] for way in ways}
    for index in range(rounds + 1):
        for way, measure in ways.items():
            await anyio.sleep(random.uniform(0, float(POLL_SECONDS)))
            seconds = await measure(folder)
            if index:
                results[way].append(seconds)
    return results


def print_results(results: dict[str, list[float]], rounds: int) -> None:
    """Print seconds and ratios, and save the medians."""
    for way, seconds in results.items():
        low, median, high = statistics.quantiles(seconds, n=4)
        print(
            f"{way:26} median {median:.2f} s, middle half {low:.2f} to {high:.2f}, "
            f"all {min(seconds):.2f} to {max(seconds):.2f}"
        )
    ours, theirs, bare = (statistics.median(seconds) for seconds in results.values())
    print(f"ours / process worker {ours / theirs:.2f}; ours above a bare job {ours - bare:.2f} s")
    medians = {way: statistics.median(seconds) for way, seconds in results.items()}
    record([Chart("From “create run” to the first line of user code", "s", medians)], rounds=rounds)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 12)
