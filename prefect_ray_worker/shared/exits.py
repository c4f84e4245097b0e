"""Exit codes by which a driver explains why its flow did not begin, or how it ended.

Standard library only.

Most of them mean that the driver cannot talk to Prefect, so the worker reads them from the job and
settles the flow run. They are above 64, out of the way of other programs.
"""

import signal
from enum import IntEnum


class DriverExit(IntEnum):
    """Why a driver ended without a flow that has come to its end."""

    NO_PREFECT = 80
    """`prefect` cannot be imported where the job runs."""

    NOT_AUTHORIZED = 81
    """The Prefect API rejected the credentials of the node, or the node has none."""

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

    BAD_SETTING = 87
    """A Prefect setting cannot be used where the job runs."""

    FORCED = 88
    """The flow was told to end and did not: its process was ended. Task runs may be left open."""


def describe_exit(code: int) -> str:
    """Return an exit code in words: `signal SIGKILL` or `exit code 3`.

    A shell reports a signal as 128 plus its number, Ray and Python as the negative number.
    """
    number = -code if code < 0 else code - 128
    try:
        return f"signal {signal.Signals(number).name}"
    except ValueError:
        return f"exit code {code}"
