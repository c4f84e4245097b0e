"""`MemoryKills`: what the kernel's counters say about kills for memory around a death."""

from enum import Enum


class MemoryKills(Enum):
    """What the counters showed around a death."""

    IN_CONTAINER = "in-container"
    """The counter of the driver's own control group went up."""

    ON_MACHINE = "on-machine"
    """The counter of the machine went up; it does not say whose process was killed."""

    NONE = "none"
    """The counters were readable and did not change."""

    UNKNOWN = "unknown"
    """No counter is readable there."""
