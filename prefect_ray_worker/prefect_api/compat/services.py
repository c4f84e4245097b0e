"""Private names of Prefect's background services, which send logs and events."""

import threading
import time
from concurrent.futures import Future, wait
from typing import Any

_POLL_SECONDS = 0.1
# As long as Prefect's handler of logs waits when `logging` is shut down (3.8.8).
_STOPPED_SECONDS = 5.0


def send_all_that_waits(seconds: float, stopped: threading.Event) -> bool:
    """Stop Prefect's services once they have sent everything; return whether they have.

    Prefect's engine process waits without a limit (`threading._register_atexit` in
    `_QueueServiceBase.start`, 3.8.8), but only where Python finalizes the interpreter.

    Args:
        seconds: How long to wait at most.
        stopped: If it is set, wait for a few more seconds only.
    """
    from prefect.logging.handlers import APILogWorker

    # Those of events as well: all services share one dictionary of instances. It has none of them
    # afterwards, so that this is the only time to ask for what to wait for.
    drained: Any = APILogWorker.drain_all(timeout=0)
    left: set[Future[bool]] = drained[1]
    deadline, is_stopped = time.monotonic() + seconds, False
    while left and time.monotonic() < deadline:
        if stopped.is_set() and not is_stopped:
            is_stopped = True
            deadline = min(deadline, time.monotonic() + _STOPPED_SECONDS)
        left = wait(left, _POLL_SECONDS).not_done
    return not left
