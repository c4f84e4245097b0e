"""A burst: from the creation of many runs at once until the last one is Running.

    python -m tests.benchmarks.burst [runs] [database ...]

Measured on PostgreSQL and on SQLite, or on what is named of these, one after the other: a real
Prefect server, one `prefect worker start` with default settings, and a fake head in this process.
No flow runs: for each job that the head gets, a stand-in in this process tells Prefect what our
driver and the flow engine tell it until the first line of user code. It reads the run, and sets
Starting (so the driver claims the run) and Running. A real driver sends a few requests more, and
needs a node to run on.

* creation: eight callers create the runs through the API; runs per second. A caller tries again
  where the server answers 503, as it does on SQLite whose file is locked for too long;
* burst: from the first call until the last run is Running, and runs per second;
* bare: with nobody else on the server, eight callers set the states of a run until it is Running
  (Pending, Submitting, Starting, Running) with four requests per run; runs per second. That is the
  server's own limit: no worker that sets these states can be faster.

PostgreSQL is Debian's, with its default settings. SQLite is a file, which is Prefect's default.
Both servers keep no events, and have no UI.
"""

import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio
import anyio.abc
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import Abort, PrefectHTTPStatusError
from prefect.states import Pending, Running, Scheduled
from prefect.utilities.engine import propose_state

from prefect_ray_worker.prefect_api.answers import ask_patiently
from prefect_ray_worker.shared.run_rules import Patience
from tests.benchmarks.measured.postgres import postgres
from tests.benchmarks.measured.process import prefect
from tests.benchmarks.record import Chart, record
from tests.fake_ray import FakeJob, FakeRay, Timeline
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import Pool, new_pool
from tests.integration.worker_process import worker_process
from tests.waiting import wait_until

T = TypeVar("T")

CALLERS = 8
BARE_RUNS = 100
DRIVERS_AT_ONCE = 16
_RUNNING_WITHIN = 3600.0
_BUSY_SECONDS = 60.0
_RUN_ID = "prefect.io/flow-run-id"
_BEFORE_RUNNING: tuple[State[Any], ...] = (
    Pending(),
    State(type=StateType.PENDING, name="Submitting"),
    State(type=StateType.PENDING, name="Starting"),
)


@dataclass
class Burst:
    """What was measured with one database; runs per second."""

    created: float
    running: float
    bare: float
    seconds: float

    def told(self, database: str) -> str:
        return (
            f"| {database} | {self.created:.1f} /s | {self.seconds:.0f} s | {self.running:.1f} /s "
            f"| {self.bare:.1f} /s | {self.running / self.bare:.2f} |"
        )


async def by_callers(act: Callable[[T], Awaitable[object]], items: Iterable[T]) -> float:
    """Do something for each item, by eight at once; return how many a second."""
    turns, began, number = anyio.CapacityLimiter(CALLERS), time.monotonic(), 0

    async def one(item: T) -> None:
        async with turns:
            await act(item)

    async with anyio.create_task_group() as tasks:
        for item in items:
            number += 1
            tasks.start_soon(one, item)
    return number / (time.monotonic() - began)


async def report(client: PrefectClient, run_id: UUID, *states: State[Any]) -> None:
    """Set states of a run, one after the other."""
    for state in states:
        await propose_state(client, state.model_copy(), flow_run_id=run_id)


class Drivers:
    """Say to Prefect what drivers say, once a job has begun.

    Attributes:
        running: The runs that are Running.

    Args:
        client: Of Prefect.
        tasks: Runs them.
    """

    def __init__(self, client: PrefectClient, tasks: anyio.abc.TaskGroup) -> None:
        self.running: set[UUID] = set()
        self._client = client
        self._tasks = tasks
        self._turns = anyio.CapacityLimiter(DRIVERS_AT_ONCE)

    def begin(self, job: FakeJob) -> Timeline:
        """Begin a driver for a job that the head has just got."""
        self._tasks.start_soon(self._run, UUID(job.body["metadata"][_RUN_ID]))
        return RUNS_FOREVER

    async def _run(self, run_id: UUID) -> None:
        async with self._turns:
            while run_id not in self.running:
                try:
                    run = await self._client.read_flow_run(run_id)
                    if run.state is None or not run.state.is_running():
                        await report(self._client, run_id, _BEFORE_RUNNING[-1], Running())
                    self.running.add(run_id)
                except (httpx.HTTPError, PrefectHTTPStatusError, Abort) as exc:
                    # The server is busy: the answer may have got lost.
                    print(f"  a driver tries again: {exc!r:.100}", flush=True)
                    await anyio.sleep(1)


async def bare(pool: Pool, runs: int) -> float:
    """Return how many runs a second the server can bring to Running, with nobody else there."""
    deployment = await pool.deploy("adds")
    create = pool.client.create_flow_run_from_deployment
    made = [(await create(deployment, state=Scheduled())).id for _ in range(runs)]
    return await by_callers(
        lambda run_id: report(pool.client, run_id, *_BEFORE_RUNNING, Running()), made
    )


async def measure(runs: int, home: Path) -> Burst:
    """Measure one burst, and the server's own limit, on the server that the settings name."""
    async with FakeRay() as ray:
        async with new_pool({"address": ray.address}) as nobodys:
            limit = await bare(nobodys, min(runs, BARE_RUNS))
            print(f"  bare: {limit:.1f} runs/s", flush=True)
        async with new_pool({"address": ray.address}) as pool, anyio.create_task_group() as tasks:
            drivers = Drivers(pool.client, tasks)
            ray.on_submit = drivers.begin
            deployment = await pool.deploy("adds")

            async def online() -> bool:
                return bool(await pool.client.read_workers_for_work_pool(pool.name))

            async def create(number: int) -> None:
                create = pool.client.create_flow_run_from_deployment
                # With a key: a run whose creation was not answered is not made twice.
                await ask_patiently(
                    lambda: create(deployment, idempotency_key=str(number)),
                    Patience(_BUSY_SECONDS, now=anyio.current_time()),
                    on_wait=lambda exc, _: print(f"  a caller tries again: {exc!r:.100}"),
                )

            with worker_process(pool.name, home, env={"PREFECT_WORKER_QUERY_SECONDS": "10"}):
                await wait_until(online, timeout=120, description="the worker to be online")
                began = time.monotonic()
                created = await by_callers(create, range(runs))
                print(f"  created after {time.monotonic() - began:.0f} s", flush=True)
                await wait_until(
                    lambda: len(drivers.running) == runs,
                    timeout=_RUNNING_WITHIN,
                    description="all runs to be Running",
                )
                took = time.monotonic() - began
                print(f"  Running after {took:.0f} s", flush=True)
    return Burst(created, runs / took, limit, took)


def databases(folder: Path) -> dict[str, AbstractContextManager[str]]:
    """Return the databases by their names."""
    return {
        "PostgreSQL": postgres(),
        "SQLite": nullcontext(f"sqlite+aiosqlite:///{folder / 'prefect.db'}"),
    }


def main(runs: int, names: Sequence[str]) -> None:
    """Measure the databases in turn, and print and save what came out."""
    found: dict[str, Burst] = {}
    with tempfile.TemporaryDirectory() as name:
        for database, running in databases(Path(name)).items():
            if names and database not in names:
                continue
            print(f"{runs:,} runs on {database}:", flush=True)
            with running as url, prefect(url):
                found[database] = anyio.run(measure, runs, Path(name) / database)
    print("\n| database | created | last Running after | rate | bare states | of the limit |")
    print("|---|---|---|---|---|---|")
    print(*(burst.told(database) for database, burst in found.items()), sep="\n")
    record(
        Chart(
            f"{runs:,} runs created at once, {database}",
            "runs per second",
            {
                "our worker, created to Running": burst.running,
                "creation alone": burst.created,
                "bare states, without a worker": burst.bare,
            },
            "higher",
        )
        for database, burst in found.items()
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2:])
