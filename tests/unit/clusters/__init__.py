"""What the tests of several sources share."""

from collections.abc import Callable

import pytest


class Heard:
    """Takes what a source says while it starts a cluster."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.tell = tell
        self.waits = pytest.fail
