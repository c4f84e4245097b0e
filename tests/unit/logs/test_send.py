"""Batches that are refused, unclear, or not taken for long."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import anyio
import pytest

from prefect_ray_worker.errors import LogsGivenUp, LogsUnclear
from prefect_ray_worker.logs.send import Sender
from prefect_ray_worker.prefect_api.logs import SentLog
from tests.unit.logs.kit import MemoryPrefect, run

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOGS = [SentLog(f"log:{i}", NOW + timedelta(microseconds=i), 20, f"line {i}") for i in range(500)]


@pytest.mark.parametrize("trouble", ["lost", "unclear"])
def test_each_log_is_there_once_after_trouble(trouble: str) -> None:
    prefect = MemoryPrefect([trouble, "fine", trouble])
    run(Sender(prefect).send(LOGS))
    assert sorted(prefect.logs, key=lambda log: log.timestamp) == LOGS


def test_only_what_is_missing_is_sent_again() -> None:
    prefect = MemoryPrefect(["lost"])
    prefect.logs = LOGS[:300]
    run(Sender(prefect).send(LOGS))
    assert prefect.logs == LOGS
    assert prefect.longest_batch == 500


def test_log_that_is_refused_does_not_hold_up_the_others() -> None:
    prefect = MemoryPrefect()
    prefect.refused = {"line 7"}
    run(Sender(prefect).send(LOGS))
    found = [log.message for log in sorted(prefect.logs, key=lambda log: log.timestamp)]
    assert found[:7] == [f"line {i}" for i in range(7)]
    assert found[7] == "[A line of 6 characters was refused.]"
    assert found[8:] == [f"line {i}" for i in range(8, 500)]


def test_api_that_is_away_for_minutes_is_waited_for_and_for_hours_is_not() -> None:
    prefect = MemoryPrefect(itertools.repeat("lost", 30))
    run(Sender(prefect).send(LOGS))
    assert prefect.logs == LOGS
    with pytest.raises(LogsGivenUp):
        run(Sender(MemoryPrefect(itertools.repeat("lost"))).send(LOGS))


def test_wait_that_prefect_asks_for_is_kept() -> None:
    class Busy(MemoryPrefect):
        async def post(self, logs: Sequence[SentLog]) -> None:
            if not self.asked_at:
                self.asked_at.append(anyio.current_time())
                raise LogsUnclear("HTTP 429", wait=40)
            self.asked_at.append(anyio.current_time())
            await super().post(logs)

        asked_at: ClassVar[list[float]] = []

    run(Sender(Busy()).send(LOGS))
    assert Busy.asked_at[1] - Busy.asked_at[0] >= 40


def test_logs_of_one_line_stay_together_when_a_batch_is_refused() -> None:
    """Parted, a line would count as there after a restart as soon as its first log is."""
    pairs = [replace(log, name=f"log:{i // 2}") for i, log in enumerate(LOGS[:12])]

    class Together(MemoryPrefect):
        async def post(self, logs: Sequence[SentLog]) -> None:
            counts = Counter(log.name for log in logs)
            assert set(counts.values()) == {2}
            await super().post(logs)

    prefect = Together()
    prefect.refused = {"line 7"}
    run(Sender(prefect).send(pairs))
    found = [log.message for log in sorted(prefect.logs, key=lambda log: log.timestamp)]
    note = "[A line of 6 characters was refused.]"
    # Which of the two was refused, Prefect does not say.
    assert found == [
        *(f"line {i}" for i in range(6)),
        note,
        note,
        *(f"line {i}" for i in (8, 9, 10, 11)),
    ]


@pytest.mark.parametrize("seconds", [1, 1000])
def test_a_request_that_is_under_way_is_not_given_up_at_once(seconds: float) -> None:
    """The worker that goes on asked Prefect before it arrived, and its lines were there twice."""

    class Slow(MemoryPrefect):
        async def post(self, logs: Sequence[SentLog]) -> None:
            await anyio.sleep(seconds)
            await super().post(logs)

    prefect = Slow()

    async def cancelled_meanwhile() -> float:
        with anyio.move_on_after(0.5) as scope:
            await Sender(prefect).send(LOGS)
        assert scope.cancelled_caught
        return anyio.current_time()

    async def took() -> float:
        began = anyio.current_time()
        return await cancelled_meanwhile() - began

    waited = run(took())
    assert prefect.logs == (LOGS if seconds == 1 else [])
    assert waited <= 6
