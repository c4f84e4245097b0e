"""Whether the memory of a worker grows with the runs that it has had.

    python -m tests.benchmarks.memory [runs]

Short runs on a fake head, so many at once, all through one worker in a process of its own, against
a real Prefect server. Printed at each tenth: how many are settled, and the process's memory. The
beginning is the first tenth: before it, modules and pools are still being filled.
"""

import sys
import tempfile

import anyio

from tests.benchmarks.measured.process import Measured, claiming_runs, prefect, start_with
from tests.fake_ray import FakeRay
from tests.fake_ray.script import Timeline
from tests.integration.harness import new_pool
from tests.waiting import wait_until

_AT_ONCE = 20
_PARTS = 10
_PART_WITHIN = 900.0
_SHORT = Timeline([(0.0, "PENDING"), (0.05, "RUNNING"), (1.0, "FAILED")], driver_exit_code=9)


async def report(worker: Measured, runs: int) -> None:
    """Print the sizes of the worker on its way, and by how much it has grown."""
    sizes: list[float] = []
    for part in range(1, _PARTS + 1):
        wanted = runs * part // _PARTS

        async def settled(wanted: int = wanted) -> bool:
            return (await worker.ask("report"))["settled"] >= wanted

        await wait_until(settled, timeout=_PART_WITHIN, description=f"{wanted} runs")
        sizes.append((await worker.ask("report"))["rss"])
        print(f"  {wanted:6} runs settled: {sizes[-1]:6.1f} MB", flush=True)
    print(f"Growth from {runs // _PARTS} runs to {runs}: {sizes[-1] - sizes[0]:+.1f} MB")


async def main(runs: int) -> None:
    async with FakeRay() as ray, new_pool({"address": ray.address}) as pool:
        ray.on_submit = _SHORT
        with tempfile.NamedTemporaryFile("w", suffix=".ids") as file:

            async def claim() -> None:
                # On the way: a Prefect server on SQLite takes 0.1 s for each.
                async for run_id in claiming_runs(pool, runs):
                    print(run_id, file=file, flush=True)
                print(file=file, flush=True)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim, name="claiming")
                worker = await start_with(
                    "worker", pool.name, ray.address, str(_AT_ONCE), file.name
                )
                try:
                    await report(worker, runs)
                finally:
                    await worker.end()


if __name__ == "__main__":
    with prefect():
        anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
