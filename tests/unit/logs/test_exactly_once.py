"""Whatever happens between a job's log and Prefect: each line once, and in order."""

import asyncio
import itertools
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefect_ray_worker.logs import bridge as bridge_module
from prefect_ray_worker.logs import read
from prefect_ray_worker.logs.position import milliseconds
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.prefect_api.logs import LOGGER_NAME, SentLog
from prefect_ray_worker.shared.log_marks import mark
from tests.unit.logs.kit import (
    JOB,
    MemoryLogs,
    MemoryPrefect,
    bridge,
    details,
    run,
    shape_whole,
)
from tests.unit.logs.old_stamps import OldStamps

FRAGMENTS = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"tick\n",
        b"line one\n",
        "Größe 😀\n".encode(),
        b"\xff\xfe\n",
        b"\xf0\x9f",
        b"\x1b[32mgreen\x1b[0m\n",
        b"\x1b[9120;9001;9002;9003mmarked as sent\n",
        b"\x1b[9030;9001;9002;9003mmarked, not sent\n",
        b"Traceback (most recent call last):\n",
        b'  File "a.py", line 1\n',
        b"ValueError: no\n",
        b"12:00:00.123 | INFO    | Flow run 'a-b' - sent\n",
        b"WARNING:lib:careful\n",
        b"\x00",
    ]
)
STREAMS = st.lists(FRAGMENTS | st.binary(max_size=20), max_size=60).map(b"".join)
NUMBERED = st.lists(st.integers(0, 30), min_size=1, max_size=80).map(
    lambda widths: b"".join(b"%05d %s\n" % (i, b"x" * width) for i, width in enumerate(widths))
)
API = st.lists(st.sampled_from(["fine", "fine", "lost", "unclear"]), max_size=30)
RAY = st.lists(st.sampled_from(["fine", "fine", "agent", "all"]), max_size=30)
# After so many events of the loop a bridge is killed, and another one begins.
LIVES = st.lists(st.integers(1, 80), max_size=5)
CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=10)


async def forward(
    stream: bytes,
    api: list[str],
    ray: list[str],
    lives: list[int],
    cuts: list[int],
    *,
    prefect: MemoryPrefect | None = None,
) -> MemoryPrefect:
    """Let a log grow and be forwarded by one bridge after the other."""
    prefect, logs = prefect or MemoryPrefect(api), MemoryLogs(ray)
    logs.room = cuts[0]
    sizes = itertools.cycle(cuts)
    reads = ClusterLogs(logs)  # type: ignore[arg-type]
    written = 0
    for life in [*lives, None]:
        made = bridge(logs, prefect, reads)
        task = asyncio.create_task(made.run())
        for _ in range(life or 0):
            written += next(sizes)
            logs.data = stream[:written]
            await asyncio.sleep(0.3)
            logs.room = next(sizes)
        if life is None:
            logs.data = stream
            made.observe(details("SUCCEEDED"))
            await task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return prefect


QUICKLY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make batches and windows so small that short streams meet all of them."""
    monkeypatch.setattr(bridge_module, "_BATCH_LOGS", 3)
    monkeypatch.setattr(bridge_module, "_SLICE", 50)
    # After any trouble lines are joined, without it they are not.
    monkeypatch.setattr(bridge_module, "_BEHIND_SECONDS", 0.5)
    monkeypatch.setattr(read, "_SHORT", 64)
    monkeypatch.setattr(read, "_RECENT", 64)
    monkeypatch.setattr(read, "_FEWEST_LINES", 2)


# The mark's time lies days ahead of the clock on some dates: such logs were not found again.
FAR_AHEAD = b"\x1b[9120;9001;9002;9003mmarked as sent\ntick\n"


@QUICKLY
@example(FAR_AHEAD, [], [4], [11])
@given(STREAMS, API, LIVES, CUTS)
def test_any_bytes_arrive_once_and_in_order(
    small: None, stream: bytes, api: list[str], lives: list[int], cuts: list[int]
) -> None:
    prefect = run(forward(stream, api, [], lives, cuts))
    assert prefect.shown == shape_whole(stream)


@QUICKLY
@given(NUMBERED, API, RAY, LIVES, CUTS)
def test_lines_arrive_once_by_whichever_way_they_come(
    small: None, stream: bytes, api: list[str], ray: list[str], lives: list[int], cuts: list[int]
) -> None:
    prefect = run(forward(stream, api, ray, lives, cuts))
    assert prefect.shown == shape_whole(stream)


def test_silence_of_prefect_is_not_the_clusters(small: None) -> None:
    """The first read that failed, minutes after the job's end, gave the whole log up."""
    prefect = run(forward(b"a line\n", ["lost"] * 10, ["all"], [], [1]))
    assert prefect.shown == shape_whole(b"a line\n")


@QUICKLY
@given(STREAMS, st.integers(0, 40), st.integers(0, 60))
def test_run_that_an_older_version_began_goes_on_once(
    small: None, stream: bytes, there: int, event: int
) -> None:
    """Older versions counted the lines of logs, in the timestamps, and gave all one name."""
    whole, prefect, stamps = shape_whole(stream), MemoryPrefect(), OldStamps(JOB)
    started = milliseconds(datetime.now(UTC))
    prefect.logs = [
        SentLog(LOGGER_NAME, stamps.stamp(started), shaped.level, shaped.message)
        for shaped in whole[:there]
    ]
    run(forward(stream, [], [], [event + 1, 3], [30], prefect=prefect))
    assert prefect.shown == whole


@pytest.mark.parametrize("hours", [-200, -1, 1, 20, 30, 100])
def test_nodes_clock_may_be_wrong(small: None, hours: int) -> None:
    """Lines after a record from the future were sent again after each restart of the worker."""
    record = mark("a record", seal="", is_sent=True, level=20, when=time.time() + hours * 3600)
    stream = f"{record}\ntick\ntock\n".encode()
    prefect = run(forward(stream, [], [], [30, 30], [40]))
    assert prefect.shown == shape_whole(stream)
    ahead = max(log.timestamp for log in prefect.logs) - datetime.now(UTC)
    assert ahead < timedelta(hours=24, minutes=1)


@pytest.mark.parametrize("seconds", [1, 600])
def test_what_was_printed_before_the_worker_looked_stands_between_its_records(
    small: None, seconds: int
) -> None:
    """A warm driver is quicker than the worker's look; all that it had printed came last."""
    began = time.time() - seconds

    def record(after: float) -> str:
        return mark("a record", seal="", is_sent=True, level=20, when=began + after)

    stream = f"{record(0)}\nprinted first\n{record(0.2)}\nprinted between\n{record(0.4)}\n".encode()
    prefect = run(forward(stream, [], [], [], [1000]))
    first, between = (log.timestamp.timestamp() - began for log in prefect.logs)
    assert 0 <= first < 0.2 < between < 0.4


def test_a_line_after_weeks_is_not_from_tomorrow(small: None) -> None:
    """A worker that reads a log again took a mark of eleven days ago for one of tomorrow."""
    days = range(30, 0, -1)
    records = [
        mark(f"{day} days ago", seal="", is_sent=True, level=20, when=time.time() - day * 86_400)
        for day in days
    ]
    prefect = run(forward("\n".join([*records, "tick\n"]).encode(), [], [], [], [1000]))
    (tick,) = prefect.logs
    assert tick.message == "tick"
    assert tick.timestamp <= datetime.now(UTC)
