"""Calls of a flow without a deployment: from the call to the first line of user code.

    python -m tests.benchmarks.adhoc [rounds] [seconds between two looks of the worker]

Three ways in one run, as medians and as ratios (these machines are noisy, ratios are less so), and
where the time of `ray_job` goes, by the states of its runs:

* a plain Ray Job, `python -c`: what Ray itself takes;
* Prefect's `.submit()` of a bound flow: our worker in the caller, bundles in a folder, no uv;
* `ray_job`: the bundle in the run's inputs, submitted by the pool's worker.
"""

import importlib
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import anyio.to_thread
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import WorkPoolStorageConfiguration
from prefect.flows import bind_flow_to_infrastructure

from prefect_ray_worker import RayWorker, ray_job
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobSubmitRequest
from tests.benchmarks.record import Chart, record
from tests.integration.caller_kit import online, set_address
from tests.integration.harness import Pool, new_pool, settings_of
from tests.prefect_server import prefect_server
from tests.real_ray import real_ray
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
LAUNCHER = {"upload": [sys.executable], "execution": ["python"]}
Way = Callable[[Pool, Path, Any], Awaitable[UUID | None]]


FLOW = """
import time
from pathlib import Path
from prefect import flow

@flow
def notes_its_start(marker: str) -> None:
    Path(marker).write_text(str(time.time()))
"""
STEPS = {
    "AwaitingCode": "call to run created",
    "Scheduled": "bundle sent, run due",
    "Pending": "a worker has claimed it",
    "Starting": "job submitted, driver has begun",
    "Running": "flow loaded",
    "": "first user line",
}


def flow_of_user(folder: Path) -> Any:
    """Return a flow of a module that is alone in its folder, as a user's is."""
    (folder / "project").mkdir(exist_ok=True)
    (folder / "project" / "noting.py").write_text(FLOW)
    sys.path[:0] = [str(folder / "project")]
    return importlib.import_module("noting").notes_its_start


async def plain_job(pool: Pool, marker: Path, _: Any) -> None:
    code = f"import time; open({str(marker)!r}, 'w').write(str(time.time()))"
    async with JobsClient(Connection(pool.defaults["address"])) as client:
        await client.submit(
            JobSubmitRequest(
                submission_id=f"bench-{uuid4()}",
                entrypoint=f"python -c {shlex.quote(code)}",
                runtime_env={},
                metadata={},
            )
        )


async def prefects_submit(pool: Pool, marker: Path, flow: Any) -> None:
    bound = bind_flow_to_infrastructure(
        flow,
        work_pool=pool.name,
        worker_cls=RayWorker,
        job_variables={"env": {"PYTHONPATH": str(ROOT)}},
        launcher=LAUNCHER,
    )
    await anyio.to_thread.run_sync(lambda: bound.submit(str(marker)))


async def ray_jobs_submit(pool: Pool, marker: Path, flow: Any) -> UUID:
    bound = ray_job(pool.name)(flow)
    future = await anyio.to_thread.run_sync(lambda: bound.submit(str(marker)))
    return future.flow_run_id


WAYS: dict[str, Way] = {
    "plain Ray Job": plain_job,
    "Prefect's .submit()": prefects_submit,
    "ray_job": ray_jobs_submit,
}


async def measure(
    pool: Pool, folder: Path, way: Way, flow: Any, steps: dict[str, list[float]]
) -> float:
    """Return the seconds from the call to the first line of user code; note those of its steps."""
    marker = folder / f"{time.monotonic_ns()}"
    called = time.time()
    run_id = await way(pool, marker, flow)

    def written() -> str:
        return marker.read_text() if marker.exists() else ""

    began = float(await wait_until(written, timeout=120, description="user code"))
    if run_id is not None:
        history = await pool.client.read_flow_run_states(run_id)
        reached = {state.name: state.timestamp.timestamp() for state in reversed(history)}
        before = called
        for name in STEPS:
            after = reached.get(name, began if not name else before)
            steps.setdefault(name, []).append(after - before)
            before = after
    return began - called


async def store_bundles(pool: Pool, folder: Path) -> None:
    step: dict[str, Any] = {"folder": str(folder)}
    await pool.client.update_work_pool(
        pool.name,
        WorkPoolUpdate(
            storage_configuration=WorkPoolStorageConfiguration(
                bundle_upload_step={"tests.integration.bundles.upload": step},
                bundle_execution_step={"tests.integration.bundles.execute": step},
            )
        ),
    )


async def main(rounds: int, look_seconds: str) -> None:
    """Measure the ways in turn and print what came out."""
    os.environ["PYTHONPATH"] = str(ROOT)
    results: dict[str, list[float]] = {name: [] for name in WAYS}
    steps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            prefect_server(folder / "server") as server,
            real_ray(env={"PREFECT_HOME": str(folder / "driver-home")}) as ray,
            settings_of(server.api_url, folder / "home", PREFECT_WORKER_QUERY_SECONDS=look_seconds),
        ):
            async with new_pool({"address": ray.address}) as pool:
                await set_address(pool)
                await store_bundles(pool, folder)
                async with online(pool):
                    flow = flow_of_user(folder)
                    for index in range(rounds + 1):
                        for label, way in WAYS.items():
                            seconds = await measure(pool, folder, way, flow, steps)
                            if index:  # the first round warms the caches of all
                                results[label].append(seconds)
                            await anyio.sleep(3)  # until the job before has ended
    medians = {label: statistics.median(found) for label, found in results.items()}
    print(f"call to first user line, medians of {rounds} rounds, a look every {look_seconds} s")
    for label, median in medians.items():
        print(f"  {label:22} {median:5.2f} s")
    for name, label in STEPS.items():
        print(f"    {statistics.median(steps[name][1:]):5.2f} s  {label}")
    for label in ("plain Ray Job", "Prefect's .submit()"):
        print(f"  ray_job is {medians['ray_job'] / medians[label]:.2f} x {label}")
    record([Chart("From the call to the first line of user code", "s", medians)], rounds=rounds)


if __name__ == "__main__":
    anyio.run(main, int((sys.argv[1:] or ["5"])[0]), (sys.argv[2:] or ["2"])[0])
