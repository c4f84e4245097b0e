"""What a call prints of the log of its run."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio.to_thread
import pytest
from prefect.client.schemas.actions import LogCreate

from prefect_ray_worker.adhoc.following import Following, RayFlowRunFuture
from prefect_ray_worker.adhoc.log_tail import LogTail
from prefect_ray_worker.adhoc.waiting import follow
from prefect_ray_worker.prefect_api import log_window
from tests.integration.harness import Pool
from tests.integration.test_bundles import ask, new_run


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines that a caller's console shows."""
    shown: list[str] = []

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    logger, console = logging.getLogger("prefect.flow_runs"), Console()
    logger.addHandler(console)
    yield shown
    logger.removeHandler(console)


async def arrives(pool: Pool, run_id: UUID, message: str, seconds_ago: float) -> None:
    when = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    log = LogCreate(name="x", level=20, message=message, timestamp=when, flow_run_id=run_id)
    await pool.client.create_logs([log])


async def test_line_that_reaches_prefect_late_is_printed_at_the_end(
    here: Pool, lines: list[str]
) -> None:
    """The output of a flow that prints much comes later than what it logs."""
    run_id = await new_run(here)
    tail = LogTail(run_id)
    await arrives(here, run_id, "new", 0)
    await ask(lambda c: tail.print_new(c))
    await arrives(here, run_id, "late", 40)
    await ask(lambda c: tail.print_new(c))
    assert lines == ["new"]
    await ask(lambda c: tail.print_new(c, is_last=True))
    await ask(lambda c: tail.print_new(c, is_last=True))
    assert lines == ["new", "late"]


@pytest.mark.parametrize("is_short", [True, False])
async def test_lines_of_all_machines_are_printed_whatever_their_clocks(
    here: Pool, lines: list[str], is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is ahead hid the lines of the flow, also at the end."""
    monkeypatch.setattr(log_window, "_SHORT_LINES", 100 if is_short else 0)
    run_id = await new_run(here)
    tail = LogTail(run_id)
    for message, seconds_ago in (("of a fast clock", -120), ("of a good clock", 0)):
        await arrives(here, run_id, message, seconds_ago)
        await ask(lambda c: tail.print_new(c))
    assert lines == ["of a fast clock", "of a good clock"]
    monkeypatch.setattr(log_window, "_WIDE_SECONDS", 0.0)
    tail._window._wide_at = 0.0
    await arrives(here, run_id, "of a slow clock", 120)
    for _ in range(2):
        await ask(lambda c: tail.print_new(c))
    assert lines == ["of a fast clock", "of a good clock", "of a slow clock"]


async def test_ctrl_c_prints_only_what_is_new(
    here: Pool, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It printed the whole log a second time."""
    run_id = await new_run(here)
    await arrives(here, run_id, "once", 0)
    go_on = Following.go_on

    def interrupted(following: Following, deadline: float | None = None) -> None:
        following._step(deadline)
        monkeypatch.setattr(Following, "go_on", go_on)
        raise KeyboardInterrupt

    def called() -> None:
        with pytest.raises(KeyboardInterrupt):
            follow(lambda: RayFlowRunFuture[Any](run_id), stream_logs=True)

    monkeypatch.setattr(Following, "go_on", interrupted)
    await anyio.to_thread.run_sync(called)
    assert lines == ["once"]
