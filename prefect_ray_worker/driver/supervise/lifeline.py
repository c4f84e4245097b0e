"""Ends this process when its supervisor dies. Standard library only.

On Linux the kernel does that already (`descendants.die_with_parent`); this is the way for other
systems, and for a supervisor that died before it could ask the kernel.
"""

import os
import signal
import threading

from prefect_ray_worker.driver.supervise.supervisor import LIFELINE


def hold() -> None:
    """Watch the supervisor's pipe in a background thread; does nothing where there is none."""
    number = os.environ.pop(LIFELINE, None)
    if number is not None:
        threading.Thread(
            target=_watch, args=(int(number),), name="driver-lifeline", daemon=True
        ).start()


def _watch(pipe: int) -> None:
    os.set_inheritable(pipe, False)
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
