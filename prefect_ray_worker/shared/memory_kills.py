"""`MemoryKills`: what the kernel's counters say about kills for want of memory around a death."""

from enum import Enum


class MemoryKills(Enum):
    """What the counters showed around a death."""

    IN_CONTAINER = "in-container"
    """The counter of the driver's own control group went up."""

    ON_MACHINE = "on-machine"
    """The counter of the machine went up; whose process it was is not said."""

    NONE = "none"
    """The counters could be read and stood still."""

    UNKNOWN = "unknown"
    """No counter can be read there."""
