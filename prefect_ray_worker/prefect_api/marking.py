"""Marks the lines that this process logs to its console, for the worker that reads the job's log.

The worker forwards the job's output to Prefect, without what Prefect's own handlers have sent
already. Only this process knows which records those are: see `log_marks`.
"""

import logging
import sys
from functools import partial
from typing import Any

from prefect.logging.handlers import APILogHandler

from prefect_ray_worker.prefect_api.compat import in_process_pools
from prefect_ray_worker.shared.log_marks import mark

_SENT = "_prefect_ray_sent"
_CONSOLE = (1, 2)


def install(seal: str) -> None:
    """Mark what any handler of `logging` writes to standard output or error from now on.

    Handlers that a flow adds later are included. The processes of a
    `ProcessPoolTaskRunner` do the same. Call it once in a process, after Prefect has been imported;
    a second call does nothing.

    Args:
        seal: The attempt's.
    """
    if getattr(logging.Handler.format, "marks_lines", False):
        return
    in_process_pools(partial(install, seal))
    prepare, plain = APILogHandler.prepare, logging.Handler.format

    def prepare_and_note(self: APILogHandler, record: logging.LogRecord) -> dict[str, Any]:
        # A logger's own handlers come before those of its parents (`Logger.callHandlers`), so
        # this runs before the console's handler, which hangs on the root logger.
        log = prepare(self, record)
        record.__dict__[_SENT] = True
        return log

    def marked(self: logging.Handler, record: logging.LogRecord) -> str:
        text = plain(self, record)
        if not _writes_to_console(self):
            return text
        is_sent = record.__dict__.get(_SENT, False)
        level = record.levelno
        if not getattr(record, "send_to_api", True):
            # Prefect's "View at …" helps readers of the console, and is of no use in Prefect.
            level = min(level, logging.DEBUG)
        return mark(text, seal=seal, is_sent=is_sent, level=level, when=record.created)

    marked.marks_lines = True  # type: ignore[attr-defined]
    APILogHandler.prepare = prepare_and_note
    logging.Handler.format = marked


def _writes_to_console(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    try:
        return stream is not None and stream.fileno() in _CONSOLE
    except (AttributeError, OSError, ValueError):
        # Not a file at all, or a closed one.
        return stream in (sys.stdout, sys.stderr)
