"""What the tests of several sources share."""

from collections.abc import Callable

import pytest

from prefect_ray_worker.shared.ids import ClusterRef


class Heard:
    """Takes what a source says while it starts a cluster."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.tell = tell
        self.waits = pytest.fail

    async def will_use(self, ref: ClusterRef) -> None:
        pytest.fail(f"{ref} was known before")
