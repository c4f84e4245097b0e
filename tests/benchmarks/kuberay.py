"""What clusters on Kubernetes cost: time on a shared one, requests to the API server, memory.

    python -m tests.benchmarks.kuberay [overhead [runs] | requests [runs ...] | process [rounds]]

Kubernetes and KubeRay are simulated, and the heads are fake Rays; Prefect and the workers are real.

* overhead: seconds from the claim of a run until its job is submitted, on a shared cluster that is
  ready and at a fixed address, in turn on one worker; the goal is at most 0.3 s more.
* requests: to the API server per minute, from one worker outside the Kubernetes cluster, while the
  clusters of so many runs start and while they run. Requests that the service proxy passes on to
  Ray are counted apart: inside the Kubernetes cluster there are none.
* process: start and memory of a worker; see `kubernetes_client.py`.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
from prefect.client.schemas.objects import StateType

from tests.benchmarks import kubernetes_client
from tests.benchmarks.measured.process import claimed_runs, prefect, start
from tests.fake_kubernetes import FakeHeads, FakeKubernetes
from tests.fake_ray import FakeJob, FakeRay
from tests.fake_ray.script import RUNS_FOREVER, Timeline
from tests.integration.harness import Pool, new_pool
from tests.resilience.scene import set_default
from tests.waiting import wait_until

GOAL_SECONDS = 0.3
WATCHED_SECONDS = 120.0
_IMAGE = {"image": "rayproject/ray:2.60.0"}
_SHORT = Timeline([(0.0, "PENDING"), (0.05, "RUNNING"), (0.5, "FAILED")], driver_exit_code=9)
_STARTED_WITHIN = 1800.0


@asynccontextmanager
async def kubernetes_of_environment(on_submit: Timeline) -> AsyncIterator[FakeKubernetes]:
    """Run a Kubernetes whose kubeconfig workers find."""

    def prepare(ray: FakeRay, _: str) -> None:
        ray.on_submit = on_submit

    with tempfile.TemporaryDirectory() as folder:
        async with FakeKubernetes(heads=FakeHeads(prepare)) as kubernetes:
            os.environ["KUBECONFIG"] = str(kubernetes.write_kubeconfig(Path(folder)))
            try:
                yield kubernetes
            finally:
                del os.environ["KUBECONFIG"]


async def overhead(runs: int) -> None:
    """Print the time from claim to submission, for both kinds of clusters."""
    async with (
        FakeRay() as ray,
        kubernetes_of_environment(_SHORT) as kubernetes,
        new_pool({}) as pool,
        pool.working(),
    ):
        ray.on_submit = _SHORT
        heads = kubernetes.heads.by_cluster  # type: ignore[attr-defined]
        kinds: dict[str, tuple[dict[str, Any], Any]] = {
            "a fixed address": ({"address": ray.address}, lambda: [ray]),
            "a shared cluster": ({"kuberay": {**_IMAGE, "scope": "shared"}}, heads.values),
        }
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for round_ in range(runs + 1):
            for kind, (variables, rays) in kinds.items():
                took = await _claim_to_job(pool, variables, rays)
                if round_:  # the first one starts the cluster, and opens connections
                    found[kind].append(took)
        print(f"{len(heads)} shared cluster for {runs + 1} runs")
    medians = {kind: statistics.median(took) for kind, took in found.items()}
    base, shared = medians.values()
    for kind, took in found.items():
        print(
            f"{kind:20} {medians[kind]:.3f} s from claim to job ({min(took):.3f}-{max(took):.3f})"
        )
    verdict = "within" if shared - base <= GOAL_SECONDS else "ABOVE"
    print(f"{shared - base:+.3f} s ({shared / base:.2f} x), {verdict} the goal of {GOAL_SECONDS} s")


async def _claim_to_job(pool: Pool, variables: dict[str, Any], rays: Any) -> float:
    run_id = await pool.start("adds", job_variables=variables)

    def job() -> FakeJob | None:
        jobs = ((id_, job) for ray in rays() for id_, job in ray.jobs.items())
        return next((job for id_, job in jobs if str(run_id) in id_), None)

    submitted = await wait_until(job, timeout=120, description="a job")
    await pool.wait_for(run_id, seconds=120)
    return submitted.details()["start_time"] / 1000 - await _claimed_at(pool, run_id)


async def _claimed_at(pool: Pool, run_id: UUID) -> float:
    states = await pool.client.read_flow_run_states(run_id)
    return min(s.timestamp for s in states if s.type is StateType.PENDING).timestamp()


async def requests(counts: list[int]) -> None:
    """Print the requests per minute for each number of runs."""
    for count in counts:
        async with kubernetes_of_environment(RUNS_FOREVER) as kubernetes, new_pool({}) as pool:
            await set_default(pool, "kuberay", _IMAGE)
            await _requests(kubernetes, pool, count)


async def _requests(kubernetes: FakeKubernetes, pool: Pool, count: int) -> None:
    configuration = json.dumps({"kuberay": _IMAGE})
    worker = await start("worker", pool.name, configuration, ids=await claimed_runs(pool, count))
    heads = kubernetes.heads.by_cluster  # type: ignore[attr-defined]
    try:
        began = time.monotonic()
        await wait_until(
            lambda: sum(len(ray.jobs) for ray in heads.values()) == count,
            timeout=_STARTED_WITHIN,
            description=f"the jobs of {count} runs",
        )
        if count:
            _print(kubernetes, f"{count} runs, start", time.monotonic() - began)
        await anyio.sleep(5)
        kubernetes.requests.reset()
        await worker.ask("measure")
        await anyio.sleep(WATCHED_SECONDS)
        report = await worker.ask("report")
        _print(kubernetes, f"{count} runs, running", report["seconds"])
        share = report["cpu"] / report["seconds"]
        print(f"{'':24} the worker: {share:.1%} of one core, {report['rss']:.0f} MB", flush=True)
    finally:
        await worker.end()


def _print(kubernetes: FakeKubernetes, what: str, seconds: float) -> None:
    proxied = sum("/proxy/" in path for _, path in kubernetes.requests)
    objects = len(kubernetes.requests) - proxied
    minutes = seconds / 60
    print(
        f"{what:24} {objects / minutes:8.1f} requests/min for objects ({objects} in "
        f"{seconds:.0f} s), {proxied / minutes:8.1f} passed on to Ray",
        flush=True,
    )


async def main(what: str, numbers: list[int]) -> None:
    if what == "process":
        await kubernetes_client.main(*(numbers or [5]))
        return
    with prefect():
        if what == "overhead":
            await overhead(*(numbers or [20]))
        else:
            await requests(numbers or [0, 10, 1000])


if __name__ == "__main__":
    chosen = sys.argv[1:2] or ["overhead", "requests", "process"]
    for part in chosen:
        anyio.run(main, part, [int(number) for number in sys.argv[2:]])
