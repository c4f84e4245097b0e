"""Going on after a restart with what Prefect has, whatever kind of server it is."""

from datetime import UTC, datetime

import pytest

from prefect_ray_worker.logs.position import Numbering, find_position
from prefect_ray_worker.logs.send import Sender
from prefect_ray_worker.prefect_api.logs import SentLog
from tests.unit.logs.kit import JOB, MemoryPrefect, run

NOW = 1_767_225_600_000
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def filled(count: int, job: str = JOB) -> MemoryPrefect:
    prefect, numbering = MemoryPrefect(), Numbering(job)
    prefect.logs = [
        SentLog(numbering.stamp(NOW + i, lines=2), 20, f"line {2 * i}\nline {2 * i + 1}")
        for i in range(count)
    ]
    return prefect


def position(prefect: MemoryPrefect, since: datetime = LONG_AGO) -> int:
    numbering = Numbering(JOB)
    run(find_position(prefect, Sender(prefect), numbering, since=since))
    return numbering.lines


@pytest.mark.parametrize("count", [0, 1, 7, 47, 48, 500])
def test_lines_are_known(count: int) -> None:
    assert position(filled(count)) == 2 * count


@pytest.mark.parametrize("count", [3, 500])
def test_server_that_keeps_milliseconds_only_is_counted(count: int) -> None:
    prefect = filled(count)
    prefect.precision = 1000
    assert position(prefect) == 2 * count


def test_earlier_attempts_do_not_count() -> None:
    assert position(filled(100, job="prefect-job-0")) == 0
    assert position(filled(100), since=datetime.fromtimestamp(NOW / 1000 + 99, UTC)) == 0


def test_api_that_is_away_is_waited_for() -> None:
    prefect = filled(60)
    prefect.troubles = iter(["lost"] * 5)
    assert position(prefect) == 120
