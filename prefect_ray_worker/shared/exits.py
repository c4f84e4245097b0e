"""Exit codes with which a driver tells why it could not run its flow. Standard library only.

The worker reads them from the job and says the same on the flow run, where the driver cannot:
most of them mean that the driver cannot talk to Prefect. Above 64, out of the way of programs.
"""

import signal
import sys
from enum import IntEnum


class DriverExit(IntEnum):
    """Why a driver ended without running its flow."""

    NO_PREFECT = 80
    """`prefect` cannot be imported where the job runs."""

    NOT_AUTHORIZED = 81
    """The Prefect API refused the credentials that the node has, or has not."""

    API_UNREACHABLE = 82
    """The Prefect API does not answer from where the job runs."""

    BAD_CALL = 83
    """The driver was called with wrong arguments."""

    REPORTED = 84
    """The run has crashed, and the driver itself has told Prefect so."""

    OLD_PYTHON = 85
    """The Python where the job runs is too old for this package."""

    WRONG_API = 86
    """What answers as the Prefect API does not know the run, or is something else."""


def explained(code: DriverExit, diagnosis: object) -> DriverExit:
    """Say on the job's own output why the driver ends, and return its exit code.

    Args:
        code: By which the worker knows that the last line is about it.
        diagnosis: Its text is one line that begins with a category.
    """
    # The flow may have left a line without its end.
    sys.stderr.write(f"\n{diagnosis}\n")
    sys.stderr.flush()
    return code


def describe_exit(code: int) -> str:
    """Return an exit code in words: `signal SIGKILL` or `exit code 3`.

    A shell reports a signal as 128 plus its number, Ray and Python as the negative number.
    """
    number = -code if code < 0 else code - 128
    try:
        return f"signal {signal.Signals(number).name}"
    except ValueError:
        return f"exit code {code}"
