"""What a call prints of the log of its run."""

import logging
from datetime import UTC, datetime, timedelta

from prefect.client.schemas.actions import LogCreate

from prefect_ray_worker.adhoc.log_tail import LogTail
from tests.integration.harness import Pool
from tests.integration.test_bundles import ask, new_run


async def test_line_that_reaches_prefect_late_is_printed_at_the_end(here: Pool) -> None:
    """The output of a flow that prints much comes later than what it logs."""
    run_id, now, lines = await new_run(here), datetime.now(UTC), list[str]()

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    async def arrives(message: str, seconds_ago: float) -> None:
        when = now - timedelta(seconds=seconds_ago)
        log = LogCreate(name="x", level=20, message=message, timestamp=when, flow_run_id=run_id)
        await here.client.create_logs([log])

    logger, console, tail = logging.getLogger("prefect.flow_runs"), Console(), LogTail(run_id)
    logger.addHandler(console)
    try:
        await arrives("new", 0)
        await ask(lambda c: tail.print_new(c))
        await arrives("late", 40)
        await ask(lambda c: tail.print_new(c))
        assert lines == ["new"]
        await ask(lambda c: tail.print_new(c, is_last=True))
        await ask(lambda c: tail.print_new(c, is_last=True))
    finally:
        logger.removeHandler(console)
    assert lines == ["new", "late"]
