"""Ten workers of one pool on one cluster, with more and more runs: what does each run cost?

    python -m tests.benchmarks.many_workers [workers] [total] [total ...]

By default ten workers, with 100, 1,000, 3,000 and 10,000 runs in all. The cluster is one fake head
in this process. Prefect is a real server on a PostgreSQL of its own (Debian's package). Its runs
are made in the database, in the state in which Prefect's worker hands a run over: claimed, and
labelled with the worker's name. From there on everything is the workers' own: they submit the runs,
follow them, poll for more, send heartbeats and look for runs that no worker follows.

Not measured: what a real head takes to list as many jobs, and the claims (see `burst`).

* CPU: of all workers, for each run and minute, while nothing ends;
* memory of the largest worker;
* requests per second of all workers to the head and to Prefect, and what these cost the server;
* notice: from the end of 50 jobs at once until all of them are settled;
* order (checked): no run has two jobs, is followed by two workers, or was settled twice.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import asyncpg
import psutil
from prefect.states import Pending

from tests.benchmarks.measured.postgres import postgres
from tests.benchmarks.measured.process import Measured, prefect, start_with
from tests.benchmarks.record import Chart, record
from tests.fake_ray import FakeRay
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import Pool, new_pool
from tests.waiting import wait_until

TOTALS = (100, 1_000, 3_000, 10_000)
WATCHED_SECONDS = 40.0
ENDED_AT_ONCE = 50
# As many as a worker gets with a few polls. Runs that were claimed long ago count as nobody's.
_CLAIMED_AT_ONCE = 50
_SETTLED_WITHIN = 300.0
_SUBMITTED_WITHIN = 300.0
_RUN_ID = "prefect.io/flow-run-id"
_SETTLE_SECONDS = 10.0
_COLUMNS = (
    "runs",
    "submitted",
    "CPU for each run and minute",
    "busiest worker",
    "memory",
    "to the head",
    "to Prefect",
    "server",
    f"{ENDED_AT_ONCE} ends settled after",
)
_CLONE = """
with made as materialized (select gen_random_uuid() as run, gen_random_uuid() as state
                           from generate_series(1, $1::int)),
     runs as (insert into flow_run ({run_columns})
              select {run_values} from made, template_run as t returning id),
     states as (insert into flow_run_state ({state_columns})
                select {state_values} from made, template_state as t returning id)
select run, state from made
"""


class ClaimedRuns:
    """Makes claimed runs in Prefect's database: through the API it would take longer than the rest.

    Args:
        database: A connection to it.
    """

    def __init__(self, database: "asyncpg.Connection[Any]") -> None:
        self._database = database
        self._statement = ""

    async def take_template(self, template: UUID) -> None:
        """Remember a claimed run, of which the others become copies."""
        run = {"id": "made.run", "state_id": "null", "labels": "$2::text::jsonb"}
        run["state_timestamp"] = "clock_timestamp()"
        state = {"id": "made.state", "flow_run_id": "made.run", "timestamp": "clock_timestamp()"}
        parts: dict[str, str] = {}
        for name, key, new in (("run", "id", run), ("state", "flow_run_id", state)):
            table = "flow_run" if name == "run" else "flow_run_state"
            await self._database.execute(
                f"create temp table template_{name} as select * from {table} "
                f"where {key} = '{template}'"
            )
            found = await self._database.fetch(
                "select column_name as c from information_schema.columns "
                "where table_schema = 'public' and table_name = $1",
                table,
            )
            columns = [row["c"] for row in found]
            parts[f"{name}_columns"] = ", ".join(f'"{column}"' for column in columns)
            parts[f"{name}_values"] = ", ".join(new.get(c, f't."{c}"') for c in columns)
        self._statement = _CLONE.format(**parts)

    async def make(self, number: int, worker: str) -> list[str]:
        """Make runs that a worker has claimed just now, and return their ids."""
        labels = {"prefect.worker.name": worker, "prefect.worker.type": "ray"}
        async with self._database.transaction():
            made = await self._database.fetch(self._statement, number, json.dumps(labels))
            await self._database.executemany(
                "update flow_run set state_id = $2 where id = $1",
                [(row["run"], row["state"]) for row in made],
            )
        return [str(row["run"]) for row in made]

    async def twice_settled(self) -> int:
        """Return how many runs have crashed more than once."""
        return await self._database.fetchval(
            "select count(*) from (select 1 from flow_run_state where type = 'CRASHED' "
            "group by flow_run_id having count(*) > 1) as twice"
        )


@dataclass
class Found:
    """What was measured with one number of runs."""

    runs: int
    cpu_per_run: float
    busiest: float
    megabytes: float
    to_head: float
    to_prefect: float
    server: float
    submitted_per_second: float = 0.0
    noticed: float = 0.0

    def told(self) -> str:
        return (
            f"| {self.runs:,} | {self.submitted_per_second:.1f} /s | {self.cpu_per_run:.1f} ms "
            f"| {self.busiest:.1f} % | {self.megabytes:.0f} MB | {self.to_head:.1f} /s "
            f"| {self.to_prefect:.1f} /s | {self.server:.0f} % | {self.noticed:.1f} s |"
        )


class Stage:
    """Workers, the head, and what they are asked for.

    Args:
        ray: The head.
        runs: Makes runs.
        server: The process of the Prefect server.
        folder: For the files with the runs of the workers.
    """

    def __init__(
        self, ray: FakeRay, runs: ClaimedRuns, server: psutil.Process, folder: Path
    ) -> None:
        self.ray = ray
        self._runs = runs
        self._server = server
        self._folder = folder
        self._workers: dict[str, Measured] = {}
        self._ended = 0
        self._posts = 0

    async def start(self, pool: Pool, number: int) -> None:
        """Start the workers, and wait until Prefect knows them all."""
        for i in range(number):
            name = f"worker-{i}"
            (self._folder / name).touch()
            arguments = (pool.name, self.ray.address, str(self._folder / name))
            self._workers[name] = await start_with("worker", *arguments, serves=name)

        async def online() -> bool:
            return len(await pool.client.read_workers_for_work_pool(pool.name)) == number

        await wait_until(online, timeout=300, description="the workers to be online")

    async def end(self) -> None:
        for worker in self._workers.values():
            await worker.end()

    async def ask(self, line: str) -> list[dict[str, Any]]:
        """Ask all workers at once."""
        answers: list[dict[str, Any]] = []

        async def one(worker: Measured) -> None:
            answers.append(await worker.ask(line))

        async with anyio.create_task_group() as tasks:
            for worker in self._workers.values():
                tasks.start_soon(one, worker)
        return answers

    async def grow_to(self, total: int) -> float:
        """Have the workers submit runs until there are so many; return how many a second."""
        before, began = len(self.ray.jobs), time.monotonic()
        total += self._ended
        while (made := len(self.ray.jobs)) < total:
            missing = min(total - made, _CLAIMED_AT_ONCE * len(self._workers))
            for index, name in enumerate(self._workers):
                share = missing // len(self._workers) + (index < missing % len(self._workers))
                ids = await self._runs.make(share, name) if share else []
                with (self._folder / name).open("a") as file:
                    file.writelines(f"{run}\n" for run in ids)
            there = made + missing
            print(f"  {there:,} claimed, {time.monotonic() - began:.0f} s", flush=True)
            await wait_until(
                lambda there=there: len(self.ray.jobs) >= there,
                timeout=_SUBMITTED_WITHIN,
                description="all submissions",
            )
        return (total - before) / (time.monotonic() - began)

    async def watch(self) -> Found:
        """Measure what the workers cost while nothing ends."""
        await anyio.sleep(_SETTLE_SECONDS)  # links, events and logs of the last submissions
        await self.ask("measure")
        self._posts += self.ray.requests.number_of("POST", "/api/jobs/$")
        self.ray.requests.reset()
        server = _cpu(self._server)
        began = time.monotonic()
        await anyio.sleep(WATCHED_SECONDS)
        took = time.monotonic() - began
        server = _cpu(self._server) - server
        to_head = len(self.ray.requests)
        reports = await self.ask("report")
        kinds: Counter[str] = sum((Counter(r["requests"]) for r in reports), Counter())
        print(f"  to Prefect in {took:.0f} s: {dict(kinds.most_common(8))}", flush=True)
        print(f"  to the head: {dict(self.ray.requests.by_kind)}", flush=True)
        runs = sum(not job.is_terminal for job in self.ray.jobs.values())
        shares = [report["cpu"] / report["seconds"] for report in reports]
        return Found(
            runs,
            cpu_per_run=sum(shares) * 60 / runs * 1000,
            busiest=max(shares) * 100,
            megabytes=max(report["rss"] for report in reports),
            to_head=to_head / took,
            to_prefect=kinds.total() / took,
            server=server / took * 100,
        )

    async def notice(self) -> float:
        """End some jobs at once, and return how long it takes until all are settled."""
        going_on = [job for job in self.ray.jobs.values() if not job.is_terminal]
        chosen = going_on[:: max(len(going_on) // ENDED_AT_ONCE, 1)][:ENDED_AT_ONCE]
        for job in chosen:
            job.set("FAILED", driver_exit_code=9)
        began = time.monotonic()
        self._ended += len(chosen)

        async def settled() -> bool:
            return sum(report["settled"] for report in await self.ask("report")) >= self._ended

        await wait_until(settled, timeout=_SETTLED_WITHIN, description="the ends to be settled")
        return time.monotonic() - began

    async def check_order(self) -> None:
        """Check that the workers have stayed out of each other's way.

        Raises:
            AssertionError: A run was submitted, followed or settled twice, or by nobody.
        """
        jobs = Counter(job.body["metadata"][_RUN_ID] for job in self.ray.jobs.values())
        twice = [run for run, times in jobs.items() if times > 1]
        assert not twice, f"{len(twice)} runs have two jobs"
        posts = self._posts + self.ray.requests.number_of("POST", "/api/jobs/$")
        if posts > len(jobs):
            print(f"  {posts - len(jobs)} submissions were repeated after an unclear answer")
        rest = len(self.ray.jobs) - self._ended

        async def followed() -> bool:
            # A worker lets a run go a moment after it has settled it.
            return sum(report["followed"] for report in await self.ask("report")) == rest

        await wait_until(followed, timeout=60, description=f"{rest} runs to be followed")
        settled = sum(report["settled"] for report in await self.ask("report"))
        assert settled == self._ended, f"{settled} ends were settled, of {self._ended}"
        assert not (times := await self._runs.twice_settled()), f"{times} runs crashed twice"


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def measured(stage: Stage, total: int) -> Found:
    """Measure everything with one number of runs."""
    print(f"{total:,} runs:", flush=True)
    submitted = await stage.grow_to(total)
    found = replace(await stage.watch(), submitted_per_second=submitted)
    found = replace(found, noticed=await stage.notice())
    print(found.told(), flush=True)
    await stage.check_order()
    return found


async def main(server: psutil.Process, dsn: str, workers: int, totals: list[int]) -> None:
    """Measure each number of runs in turn, and print and save what came out."""
    async with FakeRay() as ray, new_pool({"address": ray.address}) as pool:
        ray.on_submit = RUNS_FOREVER
        database = await asyncpg.connect(dsn)
        runs = ClaimedRuns(database)
        deployment = await pool.deploy("adds")
        template = await pool.client.create_flow_run_from_deployment(deployment, state=Pending())
        await runs.take_template(template.id)
        await pool.client.delete_flow_run(template.id)
        with tempfile.TemporaryDirectory() as folder:
            stage = Stage(ray, runs, server, Path(folder))
            try:
                await stage.start(pool, workers)
                found: list[Found] = []
                for total in totals:
                    found.append(await measured(stage, total))
                    save(found, workers)  # each number takes minutes: keep what there is
            finally:
                await stage.end()
                await database.close()
    print(f"\n| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|", sep="\n")
    print(*(one.told() for one in found), sep="\n")


def save(found: list[Found], workers: int) -> None:
    """Save what was measured so far."""
    titles = {
        "cpu_per_run": ("CPU of the workers for each run and minute", "ms"),
        "megabytes": ("Memory of the largest worker", "MB"),
        "to_head": ("Requests to the head", "per second"),
        "to_prefect": ("Requests to Prefect", "per second"),
        "server": ("CPU of the Prefect server", "% of a core"),
        "noticed": (f"Until {ENDED_AT_ONCE} ends are settled", "s"),
    }
    record(
        Chart(
            f"{title}, {workers} workers",
            unit,
            {f"{one.runs:,} runs": float(vars(one)[field]) for one in found},
        )
        for field, (title, unit) in titles.items()
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    workers, totals = (numbers or [10])[0], numbers[1:] or list(TOTALS)
    with postgres() as dsn, prefect(dsn) as server:
        anyio.run(main, psutil.Process(server.pid), dsn, workers, totals)
