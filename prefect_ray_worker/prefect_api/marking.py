"""Marks the lines that this process logs to its console, for the worker that reads the job's log.

The worker forwards the job's output to Prefect, without what Prefect's own handlers have sent
already. Only this process knows which records those are: see `log_marks`.
"""

import logging
import re
import sys
import time
from functools import partial
from typing import Any
from uuid import uuid4

from prefect.logging.handlers import APILogHandler

from prefect_ray_worker.prefect_api.compat.tasks import in_process_pools
from prefect_ray_worker.shared.log_marks import mark

_SENT = "_prefect_ray_sent"
# From the digits of a number in base 16 to letters.
_LETTERS = str.maketrans("0123456789", "ghijklmnop")
_CONSOLE = (1, 2)
# Where Ray unpacks this package on a node; 150 characters in each of its frames in a traceback.
_UNPACKED = re.compile(r'(?<=File ")[^"\n]*/_ray_pkg_[0-9a-f]{64}/(?=prefect_ray_worker/)')


def install(seal: str) -> None:
    """Mark what any handler of `logging` writes to standard output or error from now on.

    Handlers that a flow adds later are included. The processes of a `ProcessPoolTaskRunner` do the
    same. Call it once in a process, after Prefect has been imported; a second call does nothing.

    All handlers show the files of this package without the folder that Ray has unpacked it to.

    Args:
        seal: The attempt's.
    """
    global _seal  # noqa: PLW0603 (one for a process)
    if _seal:
        return
    _seal = seal
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
        if "_ray_pkg_" in text:
            text = _UNPACKED.sub("", text)
        if not _writes_to_console(self):
            return text
        is_sent = record.__dict__.get(_SENT, False)
        level = record.levelno
        if not getattr(record, "send_to_api", True):
            # Prefect's "View at …" helps readers of the console, and is of no use in Prefect.
            level = min(level, logging.DEBUG)
        return mark(text, seal=seal, is_sent=is_sent, level=level, when=record.created)

    APILogHandler.prepare = prepare_and_note
    logging.Handler.format = marked


def present_seal() -> str:
    """Return the seal with which this process marks its lines; empty if it marks none."""
    return _seal


def install_in_ray_process(seal: str) -> None:
    """Do the same in a process whose output Ray forwards to the driver's, and announce it there.

    From the announcement on, the worker takes no unmarked line of the process for one that Prefect
    has.

    Args:
        seal: The attempt's; empty where no driver of ours runs, and then nothing is done.
    """
    if _seal or not seal:
        return
    install(seal)
    for stream in (sys.stdout, sys.stderr):  # Ray forwards them apart from each other
        # Ray drops lines that differ by nothing but words with digits (`dedup_logs`, 2.60).
        word = uuid4().hex.translate(_LETTERS)
        text = f"This process marks its lines ({word})."
        sealed = mark(text, seal=seal, is_sent=True, level=logging.DEBUG, when=time.time())
        stream.write(f"{sealed}\n")
        stream.flush()


_seal = ""


def _writes_to_console(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    try:
        return stream is not None and stream.fileno() in _CONSOLE
    except (AttributeError, OSError, ValueError):
        # Not a file at all, or a closed one.
        return stream in (sys.stdout, sys.stderr)
