"""Numbers in timestamps: any 48 of them in a row say how many there are."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_ray_worker.watching.logs.numbering import ENOUGH, Numbering, milliseconds

NOW = 1_767_225_600_000


def stamps(job: str, first: int, count: int) -> list[datetime]:
    numbering = Numbering(job, count=first, last_ms=NOW)
    return [numbering.stamp(NOW) for _ in range(count)]


@given(st.integers(0, 10**11), st.integers(1, 120))
def test_the_newest_say_how_many_there_are(first: int, count: int) -> None:
    before = min(first, ENOUGH)
    newest = stamps("job", first - before, before + count)[::-1]
    assert Numbering("job").read(newest[:ENOUGH]) == first + count


def test_every_small_number_is_read() -> None:
    all_stamps = stamps("job", 0, 2000)
    for count in range(1, 2001):
        newest = all_stamps[max(count - ENOUGH, 0) : count][::-1]
        assert Numbering("job").read(newest) == count


def test_stamps_grow_and_keep_to_the_time() -> None:
    numbering = Numbering("job")
    seen = [numbering.stamp(NOW + i // 7) for i in range(1000)]
    assert all(a < b for a, b in pairwise(seen))
    assert milliseconds(seen[-1]) == NOW + 999 // 7


def test_burst_runs_ahead_by_a_millisecond_for_forty() -> None:
    seen = stamps("job", 0, 100_000)
    assert all(a < b for a, b in pairwise(seen))
    assert seen[-1] - seen[0] <= timedelta(seconds=2.5)


@pytest.mark.parametrize("count", [3, 39, 48, 500])
def test_logs_of_another_attempt_do_not_fit(count: int) -> None:
    assert Numbering("another").read(stamps("job", 0, count)[::-1][:ENOUGH]) is None


def test_older_logs_of_another_attempt_do_not_disturb() -> None:
    mixed = [*stamps("job", 0, 100), *stamps("another", 0, 5)][::-1]
    assert Numbering("another").read(mixed[:ENOUGH]) == 5


def test_milliseconds_are_whole() -> None:
    assert milliseconds(datetime(1970, 1, 1, 0, 0, 1, 999_999, tzinfo=UTC)) == 1999
