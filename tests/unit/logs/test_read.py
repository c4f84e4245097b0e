"""Which way a log is read, and that the place in it is never guessed."""

import itertools
from dataclasses import replace

import anyio
import pytest

from prefect_ray_worker.errors import ClusterUnreachable
from prefect_ray_worker.logs import read
from prefect_ray_worker.logs.read import ClusterLogs, LogPlace, Progress
from tests.unit.logs.kit import JOB, MemoryLogs, run

PLACE = LogPlace(JOB, "ab" * 28, "http://10.0.0.9:52365")


async def read_all(reads: ClusterLogs, progress: Progress, place: LogPlace = PLACE) -> bytes:
    data = b""
    while True:
        piece = await reads.read(place, progress)
        progress.advance(piece.data)
        data += piece.data
        if piece.is_last:
            return data


def test_agent_is_preferred_and_checked_once() -> None:
    logs = MemoryLogs()
    logs.data = b"some\nlines\n"

    async def work() -> None:
        reads = ClusterLogs(logs)  # type: ignore[arg-type]
        assert await read_all(reads, Progress()) == logs.data
        assert await read_all(reads, Progress()) == logs.data

    run(work())
    assert logs.reads == ["agent", "dashboard", "agent", "agent"]


def test_agent_with_another_log_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    logs, other = MemoryLogs(), MemoryLogs()
    logs.data, other.data = b"ours\n", b"theirs\n"
    monkeypatch.setattr(logs, "from_agent", other.from_agent)

    async def work() -> bytes:
        return await read_all(ClusterLogs(logs), Progress())  # type: ignore[arg-type]

    assert run(work()) == b"ours\n"


def test_agent_that_does_not_answer_is_asked_again_later() -> None:
    logs = MemoryLogs(itertools.repeat("agent", 3))
    logs.data = b"some\nlines\n"
    asked: list[float] = []

    async def work() -> None:
        reads = ClusterLogs(logs)  # type: ignore[arg-type]
        ask = logs.from_agent

        async def note(*args: object, **kwargs: object) -> object:
            asked.append(anyio.current_time())
            return await ask(*args, **kwargs)  # type: ignore[arg-type]

        logs.from_agent = note  # type: ignore[method-assign,assignment]
        progress = Progress()
        for _ in range(1000):
            await read_all(reads, progress)
            assert progress.offset == len(logs.data or b"")
            await anyio.sleep(1)

    run(work())
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked[:4])]
    # A minute, two, four; each within 20 %, and up to a second more, when it is looked at again.
    assert all(48 * n <= gap <= 72 * n + 1 for n, gap in zip((1, 2, 4), gaps, strict=True)), gaps
    # From then on it answers, and is the only one to be asked.
    assert logs.reads[-1] == "agent"


@pytest.mark.parametrize("line", [b"tick\n", b"x" * 100 + b"\n"])
def test_place_in_a_log_of_equal_lines_is_exact(
    monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """Nothing tells one of these lines from the next: only the whole file does."""
    monkeypatch.setattr(read, "_SHORT", 1000)
    logs = MemoryLogs(itertools.repeat("agent"))

    async def work() -> None:
        reads = ClusterLogs(logs)  # type: ignore[arg-type]
        progress = Progress()
        for count in range(0, 60_000, 6_007):
            logs.data = line * count
            await read_all(reads, progress)
            assert progress.offset == len(logs.data)

    run(work())


def test_long_log_is_followed_by_its_last_lines() -> None:
    logs = MemoryLogs(itertools.repeat("agent"))
    lines = [b"line %06d\n" % number for number in range(40_000)]

    async def work() -> None:
        reads = ClusterLogs(logs)  # type: ignore[arg-type]
        progress = Progress()
        for count in range(20_000, 40_000, 100):
            logs.data = b"".join(lines[:count])
            await read_all(reads, progress)
            assert progress.offset == len(logs.data)

    run(work())
    assert logs.reads.count("dashboard") == 1
    assert len(logs.reads) < 450


def test_nobody_answers() -> None:
    logs = MemoryLogs(["all"])

    async def work() -> None:
        await ClusterLogs(logs).read(PLACE, Progress())  # type: ignore[arg-type]

    with pytest.raises(ClusterUnreachable):
        run(work())


def test_pace_is_common() -> None:
    async def work() -> tuple[float, float, float]:
        reads = ClusterLogs(MemoryLogs())  # type: ignore[arg-type]
        with reads.following():
            few = reads.pause(PLACE)
        stack = [reads.following() for _ in range(200)]
        for context in stack:
            context.__enter__()
        return few, reads.pause(PLACE), reads.pause(replace(PLACE, agent=None))

    few, many, at_head = run(work())
    assert few <= 1.2
    assert 16 <= many <= 24
    assert 32 <= at_head <= 48, "the head has other work"
