"""Our driver against `prefect flow-run execute`, side by side on one cluster in one run.

    python -m tests.benchmarks.driver [rounds]

Prints, as medians and as ratios (these machines are noisy, ratios are less so):

* start: from the job's submission, by Ray's clock, to the first line of user code;
* end: from the last line of user code to the end of the job, by Ray's clock;
* running: from the start of the job's entrypoint, which is when Ray says RUNNING, to that line;
* memory: PSS of the job's processes while the flow runs;
* cancel: from the request to Cancelled, for a flow that loops in Python.

And, with four runs at once, the memory that each adds to that of the idle zygotes.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import psutil
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.driver.supervise.processes import stat_of
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
    "our driver, cold": {"warm_driver_seconds": 0},
    "our driver, warm": {},
}
MEASURES = ("start", "running", "end", "memory", "cancel")
UNITS = {"memory": "MB"}
AT_ONCE = 4
TITLES = {
    "start": "From the job's submission to the first line of user code",
    "running": "From the start of the job's entrypoint to the first line of user code",
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
    job_processes = processes_of(run_id)
    assert int(pid) in {process.pid for process in job_processes}
    entered = min(map(started_at, job_processes))
    memory = sum(map(pss, job_processes))
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
        "running": float(began) - entered,
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


async def measure_memory(pool: Pool, folder: Path, variables: dict[str, Any]) -> float:
    """Return the PSS that each of several runs at once adds to that of the idle zygotes."""
    idle = sum(map(pss, zygotes()))
    markers = [folder / f"{time.monotonic_ns()}-{index}" for index in range(AT_ONCE)]
    runs = [
        await pool.start("bench", {"marker": str(marker)}, job_variables=variables)
        for marker in markers
    ]
    for marker in markers:
        await wait_until(marker.exists, timeout=60, description="the flow to run")
    found = [process for run_id in runs for process in processes_of(run_id)] + zygotes()
    size = (sum(map(pss, found)) - idle) / AT_ONCE
    for marker, run_id in zip(markers, runs, strict=True):
        marker.with_suffix(".go").touch()
        await pool.wait_for(run_id, StateType.COMPLETED)
    return size / 1e6


def processes_of(run_id: UUID) -> list[psutil.Process]:
    """Return the processes of a run's job: each has its id as an argument or in a variable."""
    entry, argument = f"PREFECT__FLOW_RUN_ID={run_id}\0".encode(), f"\0{run_id}\0".encode()
    return [
        process
        for process in psutil.process_iter()
        if entry in said_of(process, "environ") or argument in said_of(process, "cmdline")
    ]


def started_at(process: psutil.Process) -> float:
    """Return when a process has started; psutil's answer is up to a second off (7.2)."""
    ticks = int(stat_of(process.pid)[19])
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - ago


def said_of(process: psutil.Process, file: str) -> bytes:
    try:
        return Path(f"/proc/{process.pid}/{file}").read_bytes()
    except OSError:
        return b""


def zygotes() -> list[psutil.Process]:
    """Return those of all runs: the machine has none but the benchmark's."""
    name = b"\0prefect_ray_worker.driver\0zygote\0"
    return [process for process in psutil.process_iter() if name in said_of(process, "cmdline")]


def pss(process: psutil.Process) -> int:
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
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
                crowd = {way: await measure_memory(pool, folder, v) for way, v in WAYS.items()}
    print(f"medians of {rounds} rounds")
    charts = [chart(name, results) for name in MEASURES]
    told(f"memory added by one of {AT_ONCE}", crowd, "MB")
    title = f"Memory that each of {AT_ONCE} runs at once adds (PSS)"
    record([*charts, Chart(title, "MB", crowd)], rounds=rounds)


def chart(name: str, results: dict[str, list[dict[str, float]]]) -> Chart:
    medians = {way: statistics.median(r[name] for r in results[way]) for way in WAYS}
    unit = UNITS.get(name, "s")
    told(name, medians, unit)
    return Chart(TITLES[name], unit, medians)


def told(name: str, figures: dict[str, float], unit: str) -> None:
    first = next(iter(figures.values()))
    each = [f"{way} {f:.2f} {unit} ({f / first:.2f} x)" for way, f in figures.items()]
    print(f"{name:24} {', '.join(each)}")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5)
