"""`LogForwarding`: goes on for as long as the job does."""

import asyncio
import itertools
import logging

import anyio
import httpx
import pytest

from prefect_ray_worker.logs.forward import LogForwarding
from prefect_ray_worker.logs.read import ClusterLogs
from tests.counted import Change
from tests.unit.logs.kit import JOB, MemoryLogs, MemoryPrefect, details, run

HOUR = 3600.0


@pytest.mark.parametrize("is_asked", [False, True], ids=["logs", "owner"])
def test_a_log_is_forwarded_again_after_hours_without_prefect(is_asked: bool) -> None:
    """A job of days showed no more output: its log was given up after an hour, up to its end."""
    logs, prefect = MemoryLogs(), MemoryPrefect()
    read, lines = Change("prefect_ray_log_bytes_total"), Change("prefect_ray_log_lines_total")
    lag = Change("prefect_ray_log_lag_seconds_count")
    is_away = False

    async def owns() -> bool:
        if is_asked and is_away:
            raise httpx.ConnectError("no way")
        return True

    async def forward() -> None:
        nonlocal is_away
        forwarding = LogForwarding(
            JOB,
            attempt=1,
            reads=ClusterLogs(logs),  # type: ignore[arg-type]
            sink=prefect,
            owns=owns,
            log=logging.getLogger("tests.forward"),
            is_new=True,
        )
        forwarding.observe(details())
        task = asyncio.create_task(forwarding.run())
        logs.data = b"before\n"
        await anyio.sleep(60)
        is_away, prefect.troubles = True, itertools.repeat("lost")
        logs.data += b"meanwhile\n"
        await anyio.sleep(3 * HOUR)
        is_away, prefect.troubles = False, iter(())
        logs.data += b"afterwards\n"
        await anyio.sleep(HOUR / 6)
        shown = [log.message for log in prefect.shown]
        assert shown == ["before", "meanwhile", "afterwards"]
        forwarding.observe(details("FAILED"))
        await task
        assert forwarding.is_complete
        assert [log.message for log in prefect.shown] == shown
        assert lines() == 3
        assert read() >= len(logs.data)
        assert lag() > 0

    run(forward())
