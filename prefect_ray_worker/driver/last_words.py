"""What a driver tells the worker through the job's own output, where Prefect cannot be told.

Standard library only, and for any Python: the first process and a Python that is too old use it.
"""

import sys

from prefect_ray_worker.shared.diagnosis import Diagnosis
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.verdict_line import format_verdict


def tell_worker(diagnosis: Diagnosis, attempt: str) -> None:
    """Print the line from which the worker learns why the run has no result.

    Args:
        diagnosis: What to tell.
        attempt: The attempt that this driver was started for.
    """
    sys.stdout.flush()  # or what the flow has printed would come after the last words
    # The flow may have left a line without its end.
    sys.stderr.write(f"\n{format_verdict(diagnosis, attempt)}\n")
    sys.stderr.flush()


def explained(code: DriverExit, diagnosis: Diagnosis, attempt: str) -> DriverExit:
    """Tell the worker why this driver ends, and return its exit code."""
    tell_worker(diagnosis, attempt)
    return code
