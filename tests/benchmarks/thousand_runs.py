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

import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending

from prefect_ray_worker.settings import worker_settings
from tests.fake_ray import FakeRay
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import Pool, new_pool, settings_of
from tests.prefect_server import prefect_server
from tests.waiting import wait_until

WATCHED_SECONDS = 60.0
ENDED_AT_ONCE = 50
_SUBMITTED_WITHIN = 900.0


@dataclass
class Measured:
    """A measured process, which answers a line with a line of JSON."""

    process: asyncio.subprocess.Process

    async def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()
        with anyio.fail_after(120):
            return json.loads(await self.process.stdout.readline())

    async def end(self) -> None:
        self.process.kill()
        await self.process.wait()


async def start(module: str, *arguments: str, ids: list[str]) -> Measured:
    """Start a process; the ids come in a file, as a command line may be too short for them."""
    with tempfile.NamedTemporaryFile("w", suffix=".ids", delete=False) as file:
        file.write("\n".join(ids))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.benchmarks.measured.{module}",
        *arguments,
        file.name,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=None if os.environ.get("VERBOSE") else asyncio.subprocess.DEVNULL,
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value() or ""},
    )
    return Measured(process)


async def watch(ray: FakeRay, measured: Measured) -> None:
    await measured.ask("measure")
    ray.requests.reset()
    await anyio.sleep(WATCHED_SECONDS)
    report = await measured.ask("report")
    per_second = len(ray.requests) / report["seconds"]
    print(
        f"  watch:  {report['cpu'] / report['seconds']:.1%} of one core, {report['rss']:.0f} MB, "
        f"{per_second:.2f} requests/s {dict(ray.requests.by_kind)}, "
        f"longest callback {report['callback'] * 1000:.0f} ms"
    )


async def ours(ray: FakeRay, pool: Pool, runs: int) -> None:
    deployment = await pool.deploy("adds")
    ids = [
        (await pool.client.create_flow_run_from_deployment(deployment, state=Pending())).id
        for _ in range(runs)
    ]
    before = len(ray.jobs)
    worker = await start("worker", pool.name, ray.address, ids=[str(id_) for id_ in ids])
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
        await anyio.sleep(worker_settings().poll_interval_seconds * 2)
        await watch(ray, worker)
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
    finally:
        await worker.end()


async def naive(ray: FakeRay, runs: int) -> None:
    ids = [f"naive-{i}" for i in range(runs)]
    for submission_id in ids:
        ray.add_job(submission_id)
    threads = await start("naive", ray.address, ids=ids)
    try:
        await threads.ask("report")  # all threads have been started
        await anyio.sleep(10)
        await watch(ray, threads)
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
            await ours(ray, pool, runs)
        print("A thread and a poll per job, Ray's own JobSubmissionClient:", flush=True)
        await naive(ray, runs)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]] + [1000, 20_000][len(sys.argv) - 1 :]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with (
            prefect_server(home / "server") as server,
            settings_of(server.api_url, home / "worker"),
        ):
            anyio.run(main, *numbers)
