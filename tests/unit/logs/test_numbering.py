"""Numbers in timestamps: any 48 of them in a row say how many there are."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_ray_worker.logs.position import ENOUGH, Numbering, milliseconds

NOW = 1_767_225_600_000
Marks = list[tuple[datetime, int]]


def marks(sizes: list[int], job: str = "job", *, numbering: Numbering | None = None) -> Marks:
    """Return the timestamps and sizes of logs with so many lines each, the newest first."""
    numbering = numbering or Numbering(job)
    return [(numbering.stamp(NOW, lines=size), size) for size in sizes][::-1]


def resumed(newest: Marks, job: str = "job") -> Numbering | None:
    numbering = Numbering(job)
    return numbering if numbering.resume(newest[:ENOUGH]) else None


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=200))
def test_the_newest_logs_say_how_many_lines_there_are(sizes: list[int]) -> None:
    found = resumed(marks(sizes))
    assert found is not None
    assert found.lines == sum(sizes)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=130), st.integers(0, 10**10))
def test_numbering_goes_on_as_if_nothing_had_been(sizes: list[int], before: int) -> None:
    first = Numbering("job")
    earlier = marks([before] * 60, numbering=first) if before else []
    newest = marks(sizes, numbering=first) + earlier
    found = resumed(newest)
    assert found is not None
    assert [found.stamp(NOW) for _ in range(90)] == [first.stamp(NOW) for _ in range(90)]


def test_every_small_number_is_read() -> None:
    newest = marks([1] * 2000)
    for count in range(1, 2001):
        found = resumed(newest[2000 - count :])
        assert found is not None
        assert found.lines == count


def test_stamps_grow_and_keep_to_the_time() -> None:
    numbering = Numbering("job")
    seen = [numbering.stamp(NOW + i // 7) for i in range(1000)]
    assert all(a < b for a, b in pairwise(seen))
    assert milliseconds(seen[-1]) == NOW + 999 // 7


def stamps(job: str, count: int) -> list[datetime]:
    return [when for when, _ in marks([1] * count, job)][::-1]


def test_burst_runs_ahead_by_a_millisecond_for_forty() -> None:
    seen = stamps("job", 100_000)
    assert all(a < b for a, b in pairwise(seen))
    assert seen[-1] - seen[0] <= timedelta(seconds=2.5)


@pytest.mark.parametrize("count", [3, 8, 39, 48, 500])
def test_logs_of_another_attempt_do_not_fit(count: int) -> None:
    assert resumed(marks([1] * count), "another") is None


@pytest.mark.parametrize("count", [5, 39, 45, 90])
def test_older_logs_of_another_attempt_do_not_disturb(count: int) -> None:
    found = resumed(marks([2] * count, "another") + marks([1] * 100), "another")
    assert found is not None
    assert found.lines == 2 * count


def test_milliseconds_are_whole() -> None:
    assert milliseconds(datetime(1970, 1, 1, 0, 0, 1, 999_999, tzinfo=UTC)) == 1999
