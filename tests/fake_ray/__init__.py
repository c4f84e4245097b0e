"""A scriptable Ray Jobs server over real HTTP, odd answers included.

Example:
    ```python
    async with FakeRay() as ray:
        ray.on_submit = Timeline([(0.0, "PENDING"), (0.2, "RUNNING")])
        ray.faults.add(Fault("POST", "/api/jobs/$", kind=Kind.ACT_THEN_DROP))
        ...
        ray.jobs["id"].set("SUCCEEDED")
    ```
"""

from tests.fake_ray.faults import Fault, Faults, Kind
from tests.fake_ray.script import FakeJob, Timeline, like_a_shell
from tests.fake_ray.server import FakeRay, RequestLog

__all__ = [
    "FakeJob",
    "FakeRay",
    "Fault",
    "Faults",
    "Kind",
    "RequestLog",
    "Timeline",
    "like_a_shell",
]
