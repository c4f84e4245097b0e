"""One worker that watches a thousand runs of one cluster, against a thread and a poll per job.

    python -m tests.benchmarks.thousand_runs [runs] [records]

The cluster is a fake head in this process, which remembers `records` finished jobs besides the
running ones; the Prefect server is a real one. What is measured runs in processes of its own, by
their own CPU time, so that a noisy machine changes little:

* submit: seconds until Ray has all jobs, and the most requests that it saw at once;
* watch: share of one core, memory, requests per second to the head, and the longest that a single
  callback has kept the event loop, by the thread's CPU time;
* notice: from the end of 50 jobs until their runs are settled, in looks at the cluster.
"""

import sys
import time
from dataclasses import dataclass

import anyio

from prefect_ray_worker.settings import worker_settings
from tests.benchmarks.measured.process import Measured, claimed_runs, prefect, start
from tests.benchmarks.record import Chart, record
from tests.fake_ray import FakeRay
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import Pool, new_pool
from tests.waiting import wait_until

WATCHED_SECONDS = 60.0
ENDED_AT_ONCE = 50
_SUBMITTED_WITHIN = 900.0


@dataclass
class Watching:
    """What a process costs while it watches jobs."""

    share: float
    megabytes: float
    requests: float


async def watch(ray: FakeRay, measured: Measured) -> Watching:
    await measured.ask("measure")
    ray.requests.reset()
    await anyio.sleep(WATCHED_SECONDS)
    report = await measured.ask("report")
    per_second = len(ray.requests) / report["seconds"]
    print(
        f"  watch:  {report['cpu'] / report['seconds']:.1%} of one core, {report['rss']:.0f} MB, "
        f"{per_second:.2f} requests/s {dict(ray.requests.by_kind)}, "
        f"longest callback {report['callback'] * 1000:.0f} ms ({report['culprit']})"
    )
    return Watching(report["cpu"] / report["seconds"] * 100, report["rss"], per_second)


async def quiet(ray: FakeRay) -> None:
    """Wait until nobody submits any more: what was adopted from the queue is submitted twice."""
    posts = -1
    with anyio.fail_after(_SUBMITTED_WITHIN):
        while ray.requests.number_of("POST") != posts:
            posts = ray.requests.number_of("POST")
            await anyio.sleep(worker_settings().poll_interval_seconds * 3)


async def ours(ray: FakeRay, pool: Pool, runs: int) -> Watching:
    ids = await claimed_runs(pool, runs)
    before = len(ray.jobs)
    worker = await start("worker", pool.name, ray.address, ids=ids)
    try:
        began = time.monotonic()
        await wait_until(
            lambda: len(ray.jobs) == before + runs,
            timeout=_SUBMITTED_WITHIN,
            description="all submissions",
        )
        print(
            f"  submit: {runs} in {time.monotonic() - began:.1f} s with the start of the process, "
            f"at most {ray.requests.max_in_flight} requests at once"
        )
        await quiet(ray)
        watching = await watch(ray, worker)
        for job in [job for job in ray.jobs.values() if not job.is_terminal][:ENDED_AT_ONCE]:
            job.set("FAILED", driver_exit_code=9)
        ended = time.monotonic()
        ray.requests.reset()

        async def settled() -> bool:
            return (await worker.ask("report"))["settled"] >= ENDED_AT_ONCE

        await wait_until(settled, timeout=120, description="the ends to be noticed")
        looks = ray.requests.number_of("GET", "/api/jobs/$")
        print(
            f"  notice: {ENDED_AT_ONCE} ends settled after {time.monotonic() - ended:.1f} s and "
            f"{looks} looks"
        )
        return watching
    finally:
        await worker.end()


async def naive(ray: FakeRay, runs: int) -> Watching:
    ids = [f"naive-{i}" for i in range(runs)]
    for submission_id in ids:
        ray.add_job(submission_id)
    threads = await start("naive", ray.address, ids=ids)
    try:
        await threads.ask("report")  # all threads have been started
        await anyio.sleep(10)
        return await watch(ray, threads)
    finally:
        await threads.end()


async def main(runs: int, records: int) -> None:
    async with FakeRay() as ray:
        for i in range(records):
            ray.add_job(f"old-{i}", metadata={"prefect.io/flow-run-id": "x", "team": "y" * 200})
            ray.jobs[f"old-{i}"].set("SUCCEEDED")
        ray.on_submit = RUNS_FOREVER
        async with new_pool({"address": ray.address}) as pool:
            print(f"One worker, {runs} runs, {records} old records:", flush=True)
            found = {"our worker": await ours(ray, pool, runs)}
        print("A thread and a poll per job, Ray's own JobSubmissionClient:", flush=True)
        found["a thread and a poll per job"] = await naive(ray, runs)
    titles = {"share": ("CPU", "% of a core"), "megabytes": ("Memory", "MB")}
    titles["requests"] = ("Requests to the head", "per second")
    record(
        Chart(
            f"{title} while watching {runs:,} runs",
            unit,
            {name: float(vars(watching)[field]) for name, watching in found.items()},
        )
        for field, (title, unit) in titles.items()
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]] + [1000, 20_000][len(sys.argv) - 1 :]
    with prefect():
        anyio.run(main, *numbers)
