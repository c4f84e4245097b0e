"""`LogBridge` against a fake head over real HTTP: ends, losses, and what it costs."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psutil
import pytest

from prefect_ray_worker.logs import bridge as bridge_module
from prefect_ray_worker.logs.bridge import LogBridge
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.prefect_api.logs import FoundLogs
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient
from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.shared.log_marks import END_OF_OUTPUT, end_of_output, mark, seal_of
from tests.fake_ray import FakeRay, Fault, Kind
from tests.ports import free_port
from tests.unit.logs.kit import LONGEST, MemoryPrefect
from tests.waiting import wait_until

MANY = 50


@asynccontextmanager
async def bridging(
    ray: FakeRay, *jobs: str
) -> AsyncIterator[tuple[list[LogBridge], list[MemoryPrefect], list["asyncio.Task[None]"]]]:
    """Run a bridge for each of some jobs, which all run."""
    async with LogsClient(Connection(ray.address)) as client:
        reads = ClusterLogs(client)
        sinks = [MemoryPrefect() for _ in jobs]
        bridges = [
            LogBridge(job, attempt=1, reads=reads, sink=sink, longest=LONGEST)
            for job, sink in zip(jobs, sinks, strict=True)
        ]
        for job, bridge in zip(jobs, bridges, strict=True):
            show(ray, job, bridge)
        tasks = [asyncio.create_task(bridge.run()) for bridge in bridges]
        try:
            yield bridges, sinks, tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def show(ray: FakeRay, job: str, bridge: LogBridge) -> None:
    bridge.observe(JobDetails.model_validate(ray.jobs[job].details()))


def texts(sink: MemoryPrefect) -> list[str]:
    return [shaped.message for shaped in sink.shown]


async def test_line_is_there_soon_and_the_rest_at_the_end(ray: FakeRay) -> None:
    job = ray.add_job("j")
    async with bridging(ray, "j") as ([bridge], [sink], [task]):
        job.print("first\n")
        await wait_until(lambda: texts(sink) == ["first"], timeout=5, description="a line")
        job.print("no end")
        job.set("SUCCEEDED")
        show(ray, "j", bridge)
        await asyncio.wait_for(task, 10)
    assert texts(sink) == ["first", "no end"]
    assert bridge.bytes_read == len("first\nno end")
    assert bridge.lines_forwarded == 2


async def test_end_of_the_output_is_told_before_the_job_has_ended(ray: FakeRay) -> None:
    """A caller that prints the log waits for its last line, and not for the job's status."""
    job, sink = ray.add_job("prefect-run-0123456789ab"), MemoryPrefect()
    seal = seal_of("0123456789ab")
    shown: list[list[str]] = []

    async def note() -> None:
        shown.append(texts(sink))

    async with LogsClient(Connection(ray.address)) as client:
        bridge = LogBridge(
            job.submission_id,
            attempt=1,
            reads=ClusterLogs(client),
            sink=sink,
            longest=LONGEST,
            on_end=note,
        )
        show(ray, job.submission_id, bridge)
        task = asyncio.create_task(bridge.run())
        job.print(mark("Driver.", seal=seal, is_sent=True, level=10, when=time.time()) + "\n")
        job.print(f"{END_OF_OUTPUT}\n")  # a flow may print these words as well
        await wait_until(lambda: texts(sink), timeout=5, description="a line")
        assert shown == []
        job.print(f"the last one{end_of_output(seal, time.time())}\n")
        await wait_until(lambda: shown, timeout=5, description="the end")
        job.set("SUCCEEDED")
        show(ray, job.submission_id, bridge)
        await asyncio.wait_for(task, 10)
    assert shown == [[END_OF_OUTPUT, "the last one"]]


async def test_job_that_never_began_has_no_log(ray: FakeRay) -> None:
    ray.add_job("j", "PENDING")
    async with bridging(ray, "j") as ([bridge], [sink], [task]):
        details = ray.jobs["j"].details() | {"status": "FAILED"}
        bridge.observe(JobDetails.model_validate(details))
        await asyncio.wait_for(task, 5)
    assert sink.logs == []
    assert ray.requests == []


async def test_agent_out_of_reach_is_no_loss(ray: FakeRay) -> None:
    job = ray.add_job("j")
    job.node_address = f"http://127.0.0.1:{free_port()}"
    job.print("by the dashboard\n")
    async with bridging(ray, "j") as (_, [sink], _):
        await wait_until(lambda: texts(sink), timeout=10, description="a line")
    assert texts(sink) == ["by the dashboard"]


async def test_agent_that_goes_away_in_between_is_no_loss(ray: FakeRay) -> None:
    job = ray.add_job("j")
    expected = [f"line {number:05} {'x' * 40}" for number in range(9000)]
    job.print("\n".join(expected[:5000]) + "\n")
    async with bridging(ray, "j") as ([bridge], [sink], [task]):
        await wait_until(lambda: len(texts(sink)) == 5000, timeout=20, description="lines")
        ray.faults.add(Fault("GET", "^/logs/", kind=Kind.DROP, times=None))
        job.print("\n".join(expected[5000:]) + "\n")
        job.set("FAILED")
        show(ray, "j", bridge)
        await asyncio.wait_for(task, 20)
    assert texts(sink) == expected


async def test_log_that_died_with_its_node_is_told_once(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_module, "_MISSING_SECONDS", 1.0)
    job = ray.add_job("j")
    job.print("seen\nunfinished")
    async with bridging(ray, "j") as ([bridge], [sink], [task]):
        await wait_until(lambda: texts(sink) == ["seen"], timeout=5, description="a line")
        ray.logs.lost_nodes = True
        job.set("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED")
        show(ray, "j", bridge)
        await asyncio.wait_for(task, 20)
        told = texts(sink)
        again = LogBridge("j", attempt=1, reads=bridge._reads, sink=sink, longest=LONGEST)
        show(ray, "j", again)
        await asyncio.wait_for(again.run(), 20)
    assert told[:2] == ["seen", "unfinished"]
    assert "2 lines of it had been read" in told[2]
    assert "cannot be read any more" in told[2]
    assert texts(sink) == told


async def test_prefect_is_not_asked_for_lines_of_a_job_that_is_new(ray: FakeRay) -> None:
    """A thousand runs at once cost the server two requests less each."""

    class Unasked(MemoryPrefect):
        async def find(self, **_: Any) -> FoundLogs:
            raise AssertionError("no bridge can have run before")

    job, sink = ray.add_job("j"), Unasked()
    async with LogsClient(Connection(ray.address)) as client:
        reads = ClusterLogs(client)
        bridge = LogBridge("j", attempt=1, reads=reads, sink=sink, longest=LONGEST, is_new=True)
        job.print("one\ntwo\n")
        job.set("SUCCEEDED")
        show(ray, "j", bridge)
        await asyncio.wait_for(bridge.run(), 20)
    assert texts(sink) == ["one", "two"]


async def test_cluster_that_does_not_answer_for_a_while_is_no_loss(ray: FakeRay) -> None:
    job = ray.add_job("j")
    async with bridging(ray, "j") as ([bridge], [sink], [task]):
        fault = ray.faults.add(Fault("GET", "logs", kind=Kind.STATUS, status=503, times=None))
        job.print("one\ntwo\n")
        job.set("SUCCEEDED")
        show(ray, "j", bridge)
        await wait_until(lambda: fault.hits > 2, timeout=10, description="some refusals")
        ray.faults.clear()
        await asyncio.wait_for(task, 20)
    assert texts(sink) == ["one", "two"]


@pytest.mark.extra
async def test_many_chatty_runs_leave_the_jobs_api_alone(ray: FakeRay) -> None:
    """How quick it stays is measured by `python -m tests.benchmarks.logs`."""
    names = [f"j{number}" for number in range(MANY)]
    jobs = [ray.add_job(name) for name in names]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(JobsClient(Connection(ray.address)))
        _, sinks, _ = await stack.enter_async_context(bridging(ray, *names))
        for turn in range(30):
            for job in jobs:
                job.print(f"turn {turn} of a chatty job\n" * 10)
            await client.list()
            await asyncio.sleep(0.2)
        await wait_until(
            lambda: all(len(texts(sink)) == 300 for sink in sinks),
            timeout=30,
            description="all lines of all runs",
        )
    assert ray.requests.max_in_flight <= 13
    assert ray.requests.number_of("GET", "tail") == 0


class EndlessLog:
    """A log of so many bytes that takes no memory."""

    line = b"x" * 999 + b"\n"

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, span: Any) -> bytes:
        start, end, _ = span.indices(self.size)
        first = start % len(self.line)
        return (self.line * ((end - start) // len(self.line) + 2))[first : first + end - start]


class Counting(MemoryPrefect):
    """A Prefect that keeps the newest only."""

    lines = 0

    async def post(self, logs: Any) -> None:
        await super().post(logs)
        self.lines += sum(log.message.count("\n") + 1 for log in logs)
        del self.logs[:-10]


@pytest.mark.parametrize("megabytes", [int(os.environ.get("LOG_MEGABYTES", "60"))])
async def test_memory_does_not_grow_with_the_log(ray: FakeRay, megabytes: int) -> None:
    process, sink = psutil.Process(), Counting()
    job = ray.add_job("j", "SUCCEEDED")
    job.log = EndlessLog(megabytes * 1_000_000)
    async with LogsClient(Connection(ray.address)) as client:
        reads = ClusterLogs(client)
        # The agent is not compared: the fake's dashboard would make the whole log at once.
        reads._known.add(ray.address)
        bridge = LogBridge("j", attempt=1, reads=reads, sink=sink, longest=LONGEST)
        show(ray, "j", bridge)
        before = highest = process.memory_info().rss
        task = asyncio.create_task(bridge.run())
        while not task.done():
            highest = max(highest, process.memory_info().rss)
            await asyncio.sleep(0.02)
        await task
    assert sink.lines == megabytes * 1000
    assert highest - before < 50_000_000
    assert ray.logs.longest_answer <= 256 * 1024
