"""Going on after a restart with what Prefect has, whoever has written it."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_ray_worker.logs.position import (
    Position,
    Stamps,
    find_position,
    line_in,
    milliseconds,
    name_of,
)
from prefect_ray_worker.logs.send import Sender
from prefect_ray_worker.prefect_api.logs import LOGGER_NAME, SentLog
from tests.unit.logs.kit import JOB, MemoryPrefect, run
from tests.unit.logs.old_stamps import OldStamps

NOW = 1_767_225_600_000
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def filled(count: int, attempt: int = 1, *, step: int = 2) -> MemoryPrefect:
    """Return a Prefect with logs of an attempt, two lines each."""
    prefect, stamps = MemoryPrefect(), Stamps()
    for line in range(step, step * count + 1, step):
        name = name_of(attempt, line)
        prefect.logs.append(SentLog(name, stamps.next(NOW), 20, f"line {line - 1}\nline {line}"))
    return prefect


def filled_by_an_old_version(sizes: list[int], job: str = JOB) -> MemoryPrefect:
    prefect, stamps = MemoryPrefect(), OldStamps(job)
    prefect.logs = [
        SentLog(LOGGER_NAME, stamps.stamp(NOW + i, lines=size), 20, "\n".join(["x"] * size))
        for i, size in enumerate(sizes)
    ]
    return prefect


def position(
    prefect: MemoryPrefect, attempt: int = 1, since: datetime = LONG_AGO
) -> Position | None:
    return run(find_position(prefect, Sender(prefect), JOB, attempt, since=since))


def line(prefect: MemoryPrefect, attempt: int = 1, since: datetime = LONG_AGO) -> int:
    found = position(prefect, attempt, since)
    return 0 if found is None else found.line


def logged_lines(prefect: MemoryPrefect) -> int:
    found = position(prefect)
    return 0 if found is None else found.logged_lines


def test_name_says_attempt_and_line() -> None:
    assert name_of(1, 41_200) == "prefect.ray.job:41200"
    assert name_of(2, 7) == "prefect.ray.job.2:7"
    assert line_in("prefect.ray.job:41200", 1) == 41_200
    assert line_in("prefect.ray.job:41200", 2) is None
    assert line_in("prefect.ray.job.2:7", 2) == 7
    for other in ("prefect.ray.job", "prefect.ray.job:", "prefect.ray.jobs:1", "flow:1"):
        assert line_in(other, 1) is None


@pytest.mark.parametrize("count", [0, 1, 7, 200, 500])
def test_newest_log_says_how_far_an_earlier_bridge_came(count: int) -> None:
    assert line(filled(count)) == 2 * count


def test_server_that_keeps_milliseconds_only_tells_the_same() -> None:
    prefect = filled(500)
    prefect.precision = 1000
    assert line(prefect) == 1000


def test_attempts_whose_logs_are_mixed_do_not_disturb_each_other() -> None:
    """The log of a former attempt drains on while the next one has begun."""
    first, second = filled(300), filled(100, attempt=2)
    first.logs = sorted([*first.logs, *second.logs], key=lambda log: log.timestamp)
    assert line(first, attempt=1) == 600
    assert line(first, attempt=2) == 200
    assert line(first, attempt=3) == 0


def test_logs_from_before_the_job_do_not_count() -> None:
    assert line(filled(100), since=datetime.fromtimestamp(NOW / 1000 + 99, UTC)) == 0


def test_api_that_is_away_is_waited_for() -> None:
    prefect = filled(60)
    prefect.troubles = iter(["lost"] * 5)
    assert line(prefect) == 120


def test_stamps_grow_and_keep_to_the_time() -> None:
    stamps = Stamps()
    seen = [stamps.next(NOW + i // 7) for i in range(1000)]
    assert all(a < b for a, b in pairwise(seen))
    assert milliseconds(seen[-1]) == NOW + 999 // 7
    assert seen[-1] + timedelta(microseconds=1) == stamps.next(NOW)


def test_milliseconds_are_whole() -> None:
    assert milliseconds(datetime(1970, 1, 1, 0, 0, 1, 999_999, tzinfo=UTC)) == 1999


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200))
def test_logs_of_an_older_version_say_how_many_lines_there_are(sizes: list[int]) -> None:
    assert logged_lines(filled_by_an_old_version(sizes)) == sum(sizes)


@pytest.mark.parametrize("count", [3, 500])
def test_logs_of_an_older_version_without_microseconds_are_counted(count: int) -> None:
    prefect = filled_by_an_old_version([2] * count)
    prefect.precision = 1000
    assert logged_lines(prefect) == 2 * count


@pytest.mark.parametrize("count", [3, 8, 39, 48, 500])
def test_another_attempts_logs_of_an_older_version_do_not_fit(count: int) -> None:
    assert position(filled_by_an_old_version([1] * count, job="prefect-job-0")) is None


def test_newer_logs_have_the_last_word() -> None:
    """An attempt that a version without numbers has begun, and this one has gone on with."""
    prefect = filled_by_an_old_version([1] * 60)
    prefect.logs += filled(30).logs
    prefect.logs = [
        log if log.name == LOGGER_NAME else later(log, seconds=9) for log in prefect.logs
    ]
    assert line(prefect) == 60


def later(log: SentLog, *, seconds: int) -> SentLog:
    return SentLog(log.name, log.timestamp + timedelta(seconds=seconds), log.level, log.message)
