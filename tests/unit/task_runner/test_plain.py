"""What tasks return travels as bytes, unless Ray has to see it."""

from typing import Any

import pytest
import ray
from prefect.states import Completed

from prefect_ray_worker.task_runner.pickling import Packed, pack
from prefect_ray_worker.task_runner.plain import from_ray, to_ray
from prefect_ray_worker.task_runner.task_end import TaskEnd
from prefect_ray_worker.task_runner.telemetry import TelemetryBatch

LARGE = b"x" * 100_000
END = TaskEnd.of(Completed(data=1))[0]


@pytest.mark.parametrize(
    "value", [END, pack({"a": [1]}), (END, TelemetryBatch([b"{}"], [{"message": "a"}]))]
)
def test_small_values_are_bytes(value: Any) -> None:
    """Ray's own pickling of our classes took longer than Ray took for the task."""
    returned = to_ray(value)
    assert isinstance(returned, bytes)
    assert from_ray(returned) == value


@pytest.mark.parametrize("value", [pack(LARGE), TaskEnd.of(Completed(data=LARGE))[0]])
def test_large_values_are_left_to_ray_which_does_not_copy_them(value: Any) -> None:
    assert to_ray(value) is value
    assert from_ray(value) is value


def test_references_are_left_to_ray_which_has_to_see_them() -> None:
    value = Packed(b"", refs=[ray.ObjectRef(b"1" * 28)])
    assert to_ray(value) is value
