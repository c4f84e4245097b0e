"""What a driver tells the worker through the job's own output, where Prefect cannot be told.

Standard library only, and for any Python: the first process and a Python that is too old use it.
"""

import os
import sys
from contextlib import suppress

from prefect_ray_worker.shared.diagnosis import Diagnosis
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.verdict_line import format_verdict


def flush_output() -> None:
    """Write out what has been printed, also if the flow has closed one of its streams."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # it is closed, or None
            stream.flush()


def print_last(line: str) -> None:
    """Print a line to stderr, after all that the flow has printed.

    It needs no stream of Python's: the flow may have closed `sys.stderr`, or replaced it.
    """
    flush_output()
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def tell_worker(diagnosis: Diagnosis, attempt: str) -> None:
    """Print the line from which the worker learns why the run has no result.

    Args:
        diagnosis: What to tell.
        attempt: The attempt that this driver was started for.
    """
    # The flow may have left a line without its end.
    print_last(f"\n{format_verdict(diagnosis, attempt)}")


def explained(code: DriverExit, diagnosis: Diagnosis, attempt: str) -> DriverExit:
    """Tell the worker why this driver ends, and return its exit code."""
    tell_worker(diagnosis, attempt)
    return code
