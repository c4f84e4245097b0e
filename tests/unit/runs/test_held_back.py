"""Runs that could not be claimed wait, and are not remembered for ever."""

import logging
from uuid import uuid4

import anyio
import pytest

from prefect_ray_worker.runs.held_back import HeldBack


async def test_run_that_fails_is_left_out_for_longer_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    log, run_log = logging.getLogger("test.worker"), logging.getLogger("test.run")
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    held, run_id, other = HeldBack(), uuid4(), uuid4()
    waits: list[float] = []
    for count in range(12):
        held.failed(run_id, f"failure {count}", log, run_log)
        assert run_id in held
        assert other not in held
        before = now
        while run_id in held:
            now += 0.5
        waits.append(now - before)
    told = [r.getMessage() for r in caplog.records if r.name == "test.run"]
    assert len(told) == 1, "in the log of the run, once"
    assert told[0].endswith("failure 0")
    assert waits[0] < 2 < 90 < waits[-1] < 150
    held.failed(other, "failure", log, run_log)
    held.passed(other)
    assert other not in held
    now += 1000
    held.failed(other, "failure", log, run_log)
    caplog.clear()
    held.failed(run_id, "failure", log, run_log)
    told = [r.getMessage() for r in caplog.records if r.name == "test.run"]
    assert len(told) == 1, "the first run is forgotten: no poll has shown it"
