"""Our driver against `prefect flow-run execute`, side by side on one cluster in one run.

    python -m tests.benchmarks.driver [rounds]

Prints, as medians and as ratios (these machines are noisy, ratios are less so):

* start: from the job's submission, by Ray's clock, to the first line of user code;
* end: from the last line of user code to the end of the job, by Ray's clock;
* memory: PSS of the job's processes, from the entrypoint down, while the flow runs;
* cancel: from the request to Cancelled, for a flow that loops in Python.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import InfrastructurePid
from tests.benchmarks.record import Chart, record
from tests.integration.harness import Pool, new_pool, settings_of
from tests.prefect_server import prefect_server
from tests.real_ray import real_ray
from tests.waiting import wait_until

WAYS: dict[str, dict[str, Any]] = {
    "prefect flow-run execute": {"command": "exec python -m prefect flow-run execute"},
    "our driver": {},
}
MEASURES = ("start", "end", "memory", "cancel")
UNITS = {"memory": "MB"}
TITLES = {
    "start": "From the job's submission to the first line of user code",
    "end": "From the last line of user code to the end of the job",
    "memory": "Memory of the job's processes (PSS)",
    "cancel": "From the request to Cancelled, for a flow that loops in Python",
}


async def measure(pool: Pool, folder: Path, variables: dict[str, Any]) -> dict[str, float]:
    """Run a flow once to its end and once into a cancellation."""
    marker = folder / f"{time.monotonic_ns()}"
    run_id = await pool.start("bench", {"marker": str(marker)}, job_variables=variables)
    await wait_until(marker.exists, timeout=60, description="the flow to run")
    began, pid = marker.read_text().split()
    memory = pss_of_job(int(pid))
    marker.with_suffix(".go").touch()
    run = await pool.wait_for(run_id, StateType.COMPLETED)
    ended = float(marker.with_suffix(".end").read_text())
    place = InfrastructurePid.parse(run.infrastructure_pid or "")
    async with JobsClient(Connection(place.cluster.name)) as client:

        async def job_end() -> Any:
            job = await client.get(place.submission_id)
            return job if job.is_terminal and job.end_time else None

        job = await wait_until(job_end, timeout=30, description="the job to end")
    return {
        "start": float(began) - job.start_time / 1000,
        "end": job.end_time / 1000 - ended,
        "memory": memory / 1e6,
        "cancel": await measure_cancel(pool, folder, variables),
    }


async def measure_cancel(pool: Pool, folder: Path, variables: dict[str, Any]) -> float:
    marker = folder / f"{time.monotonic_ns()}"
    run_id = await pool.start("sleeps", {"marker": str(marker)}, job_variables=variables)
    await wait_until(marker.exists, timeout=60, description="the flow to run")
    await anyio.sleep(2)
    asked = time.time()
    await pool.cancel(run_id)
    run = await pool.wait_for(run_id, StateType.CANCELLED, seconds=60)
    assert run.state is not None
    return run.state.timestamp.timestamp() - asked


def pss_of_job(engine: int) -> float:
    """Return the bytes of the entrypoint's process and all below it, shared ones divided."""
    process = psutil.Process(engine)
    while (parent := process.parent()) is not None and "JobSupervisor" not in parent.name():
        if "JobSupervisor" in " ".join(parent.cmdline()):
            break
        process = parent
    return float(sum(pss(p.pid) for p in [process, *process.children(recursive=True)]))


def pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


async def main(rounds: int) -> None:
    """Measure both ways in turn and print what came out."""
    results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            prefect_server(folder / "server") as server,
            real_ray(env={"PREFECT_HOME": str(folder / "driver-home")}) as ray,
            settings_of(server.api_url, folder / "home", PREFECT_WORKER_QUERY_SECONDS="1"),
        ):
            async with new_pool({"address": ray.address}) as pool, pool.working():
                for index in range(rounds + 1):
                    for way, variables in WAYS.items():
                        result = await measure(pool, folder, variables)
                        if index:  # the first round warms the caches of both
                            results[way].append(result)
    print(f"medians of {rounds} rounds")
    charts: list[Chart] = []
    for measure_name in MEASURES:
        medians = [statistics.median(r[measure_name] for r in results[way]) for way in WAYS]
        unit = UNITS.get(measure_name, "s")
        told = ", ".join(f"{way} {m:.2f} {unit}" for way, m in zip(WAYS, medians, strict=True))
        print(f"{measure_name:7} {told}; ratio {medians[1] / medians[0]:.2f}")
        charts.append(Chart(TITLES[measure_name], unit, dict(zip(WAYS, medians, strict=True))))
    record(charts, rounds=rounds)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5)
