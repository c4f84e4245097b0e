"""Whether the memory of a worker grows with the runs that it has had.

    python -m tests.benchmarks.memory [runs]

Short runs on a fake head, so many at once, all through one worker in a process of its own, against
a real Prefect server. Printed at each tenth: how many are settled, and the process's memory. The
beginning is the first tenth: before it, modules and pools are still being filled.
"""

import sys
import tempfile
from typing import IO

import anyio

from tests.benchmarks.measured.process import Measured, claiming_runs, prefect, start_with
from tests.benchmarks.record import Chart, record
from tests.fake_ray import FakeRay
from tests.fake_ray.script import Timeline
from tests.integration.harness import Pool, new_pool
from tests.waiting import wait_until

_AT_ONCE = 20
_CLAIMED_AT_ONCE = 2 * _AT_ONCE
_PARTS = 10
_PART_WITHIN = 900.0
_SHORT = Timeline([(0.0, "PENDING"), (0.05, "RUNNING"), (1.0, "FAILED")], driver_exit_code=9)


class Progress:
    """How many runs the worker has settled, as it last said."""

    def __init__(self) -> None:
        self.settled = 0

    async def look(self, worker: Measured) -> float:
        """Ask the worker; return the size of its process, in MB."""
        said = await worker.ask("report")
        self.settled = said["settled"]
        return said["rss"]


async def claim(pool: Pool, runs: int, progress: Progress, file: IO[str]) -> None:
    """Claim runs on the way, as Prefect's own loop does: never many more than there is room for.

    A Prefect server on SQLite takes 0.1 s for each, and a worker looks again and again at those
    that wait for their turn.
    """
    made = 0
    async for run_id in claiming_runs(pool, runs):
        print(run_id, file=file, flush=True)
        made += 1
        await wait_until(
            lambda made=made: made - progress.settled < _CLAIMED_AT_ONCE,
            timeout=_PART_WITHIN,
            description="room for more runs",
        )
    print(file=file, flush=True)


async def report(worker: Measured, runs: int, progress: Progress) -> None:
    """Print and save the sizes of the worker on its way."""
    sizes: list[float] = []
    charted: dict[str, float] = {}
    for part in range(1, _PARTS + 1):
        wanted = runs * part // _PARTS

        async def settled(wanted: int = wanted) -> float | None:
            size = await progress.look(worker)
            return size if progress.settled >= wanted else None

        size = await wait_until(settled, timeout=_PART_WITHIN, description=f"{wanted} runs")
        assert size is not None
        sizes.append(size)
        charted[f"{wanted:,} runs settled"] = size
        print(f"  {wanted:6} runs settled: {sizes[-1]:6.1f} MB", flush=True)
    print(f"Growth from {runs // _PARTS} runs to {runs}: {sizes[-1] - sizes[0]:+.1f} MB")
    record([Chart("Memory of a worker on its way", "MB", charted)])


async def main(runs: int) -> None:
    async with FakeRay() as ray, new_pool({"address": ray.address}) as pool:
        ray.on_submit = _SHORT
        progress = Progress()
        with tempfile.NamedTemporaryFile("w", suffix=".ids") as file:
            worker = await start_with("worker", pool.name, ray.address, str(_AT_ONCE), file.name)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(claim, pool, runs, progress, file, name="claiming")
                    await report(worker, runs, progress)
            finally:
                await worker.end()


if __name__ == "__main__":
    with prefect():
        anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
