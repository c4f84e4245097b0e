"""What travels to the cluster beside a task: the `FlowContext` once, and a `Call` for each run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from prefect_ray_worker.task_runner.futures import DoneFuture
from prefect_ray_worker.task_runner.modules import OwnModules
from prefect_ray_worker.task_runner.pickling import Packed, unpack, unpack_all
from prefect_ray_worker.task_runner.plain import from_ray, result_from_ray
from prefect_ray_worker.task_runner.related import Related
from prefect_ray_worker.task_runner.task_end import TaskEnd


@dataclass(frozen=True)
class FlowContext:
    """What all tasks of a flow run share.

    Attributes:
        settings: Prefect's settings; empty if there are none.
        flow_run: Packed arguments for the flow run's context; empty outside a flow.
        deployment_id: Of the flow run.
        deployment_parameters: Likewise.
        related: What Prefect relates to every event of the flow run; None outside a flow.
        paths: Folders that imports find in a task's process.
        own: The modules that a task's process can load.
        seal: With which the driver marks its log, and the task's process does; empty for none.
    """

    settings: dict[str, Any]
    flow_run: Packed
    deployment_id: Any
    deployment_parameters: Any
    related: Related | None
    paths: list[str]
    own: OwnModules
    seal: str


class Slot(Protocol):
    """Describe what a placeholder in the parameters becomes in the task's process."""

    def value(self, arguments: Sequence[Any]) -> Any:
        """Return it, given the values of the references that Ray has resolved."""
        ...


@dataclass(frozen=True)
class ReferenceSlot:
    """An object reference that the user has passed.

    Attributes:
        position: Of its value in the arguments.
    """

    position: int

    def value(self, arguments: Sequence[Any]) -> Any:
        """Return the value of the reference."""
        return arguments[self.position]


@dataclass(frozen=True)
class RunSlot:
    """An upstream run on the cluster.

    Attributes:
        task_run_id: The run.
        end: How it ended, or the position of that in the arguments.
        result: The position of its packed result in the arguments, if that is wanted.
    """

    task_run_id: UUID
    end: TaskEnd | int
    result: int | None

    def value(self, arguments: Sequence[Any]) -> DoneFuture[Any]:
        """Return the run as a future that is done."""
        end: TaskEnd = from_ray(arguments[self.end]) if isinstance(self.end, int) else self.end
        load = None if self.result is None else partial(result_from_ray, arguments[self.result])
        return DoneFuture(self.task_run_id, end.restore(load))


@dataclass(frozen=True)
class ValueSlot:
    """A value that the driver had, such as the end of a run that is not on the cluster.

    Attributes:
        packed: The value.
    """

    packed: Packed

    def value(self, arguments: Sequence[Any]) -> Any:
        """Return the value."""
        return unpack(self.packed)


@dataclass(frozen=True)
class Call:
    """One task run.

    Attributes:
        task_run_id: The run.
        parameters: The packed parameters, with placeholders: parts, or their positions in the
            arguments.
        wait_for: The packed upstream runs it waits for, with placeholders, or None.
        slots: What the placeholders become.
        dependencies: The upstream runs, for Prefect.
        context: The packed submit context, if there is one: tags, parent task run, assets.
        inherited: The packed Ray options for nested submits, if there are any.
        holds_telemetry: Whether its telemetry should wait for its end, because the API is behind.
    """

    task_run_id: UUID
    parameters: list[Packed | int]
    wait_for: Packed | None
    slots: list[Slot]
    dependencies: dict[str, set[Any]]
    context: Packed | None
    inherited: Packed | None
    holds_telemetry: bool = False

    def unpacked_parameters(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """Return the parameters, given the values that Ray has resolved."""
        return unpack_all([arguments[p] if isinstance(p, int) else p for p in self.parameters])
