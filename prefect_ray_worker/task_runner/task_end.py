"""`TaskEnd`: how a task run ended.

State and result travel apart: waiting for a task brings its state to the driver, and the result
stays in the cluster until it is asked for.
"""

import copy
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from prefect.client.schemas.objects import State
from prefect.results import (
    ResultRecord,  # pyright: ignore[reportPrivateImportUsage]
    ResultRecordMetadata,  # pyright: ignore[reportPrivateImportUsage]
)
from prefect.states import Failed
from pydantic import PrivateAttr

from prefect_ray_worker.errors import RayShutDown
from prefect_ray_worker.task_runner.pickling import Packed, pack, pack_whole, unpack


class RemoteTraceback(Exception):
    """Carries the traceback of the task's process as the cause of an exception raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class UnportableError(RuntimeError):
    """Stands for an exception of a task that cannot be pickled, or not be unpickled here.

    Attributes:
        original_type: Qualified name of the exception's class.
        original_traceback: Its traceback, as text.
    """

    def __init__(self, message: str, original_type: str = "", original_traceback: str = "") -> None:
        super().__init__(message, original_type, original_traceback)
        self.original_type = original_type
        self.original_traceback = original_traceback

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class PackedError:
    """An exception that survives the way, whatever its class does when it is unpickled."""

    content: Packed | None
    type_name: str
    message: str
    trace: str

    @classmethod
    def of(cls, exc: BaseException) -> "PackedError":
        """Pack an exception."""
        try:
            content: Packed | None = pack_whole(exc)
        except Exception:  # anything may happen in a user's __reduce__
            content = None
        kind = type(exc)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        trace = "".join(traceback.format_exception(exc))
        return cls(content, name, str(exc), trace)

    def unpack(self) -> BaseException:
        """Return the exception, or one that tells what it was."""
        exc: object = None
        if self.content is not None:
            try:
                exc = unpack(self.content)
            except Exception:  # a constructor with other arguments, a missing module
                exc = None
        if not isinstance(exc, BaseException):
            return UnportableError(f"{self.type_name}: {self.message}", self.type_name, self.trace)
        if exc.__cause__ is None:
            exc.__cause__ = RemoteTraceback(self.trace)
        return exc


class RemoteRecord(ResultRecord[Any]):
    """A result record whose result is fetched when somebody first looks at it."""

    _load: Callable[[], Any] | None = PrivateAttr(default=None)

    @classmethod
    def loading(cls, metadata: ResultRecordMetadata, load: Callable[[], Any]) -> "RemoteRecord":
        """Make a record without its result.

        Args:
            metadata: Of the record in the task's process.
            load: Returns the result; called at most once if it succeeds.
        """
        record = cls.model_construct(metadata=metadata)
        setattr(record, "_load", load)  # noqa: B010 (it is pydantic's way to have attributes)
        return record

    def __getattr__(self, item: str) -> Any:
        if item == "result" and self._load is not None:
            vars(self)["result"] = result = self._load()
            return result
        return cast("Any", super()).__getattr__(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return _record, (self.metadata, self.result)


def _record(metadata: ResultRecordMetadata, result: Any) -> ResultRecord[Any]:
    return ResultRecord.model_construct(metadata=metadata, result=result)


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """How a run ended, as its process tells it, without the result.

    Attributes:
        state: The state without its data, and the metadata of the data if that is a record; both
            pickled, because an end is kept for as long as its future.
        kind: What the data is: a record whose result travels apart, an error, or a value.
        content: The packed error, or the packed value.
        trouble: Why the API does not know of this end yet: `NOT_LOADED`, `UNSENDABLE` or nothing.
    """

    state: bytes
    kind: Literal["record", "error", "value"]
    content: Any = None
    trouble: str = ""

    def __reduce__(self) -> tuple[Any, ...]:  # a class with slots takes much longer by itself
        return TaskEnd, (self.state, self.kind, self.content, self.trouble)

    @classmethod
    def of(cls, state: State[Any]) -> tuple["TaskEnd", Packed]:
        """Split a state into an end and its packed result.

        A result that cannot be pickled makes the end Failed, with `UNSENDABLE` as its trouble.
        """
        trouble = state.name if state.name in (NOT_LOADED, UNSENDABLE) else ""
        data = state.data
        record: ResultRecord[Any] | None = data if isinstance(data, ResultRecord) else None
        if record is not None and state.is_completed():
            try:
                packed = pack(record.result)
            except Exception as exc:  # anything may happen in a user's __reduce__
                return cls.of(_unsendable(state, record.result, exc))
            return cls(_bare(state, record.metadata), "record"), packed
        value = record.result if record is not None else data
        if isinstance(value, BaseException):
            return cls(_bare(state), "error", PackedError.of(value), trouble), Packed(b"")
        try:
            metadata = record.metadata if record is not None else None
            return cls(_bare(state, metadata), "value", pack(value), trouble), Packed(b"")
        except Exception as exc:
            return cls.of(_unsendable(state, value, exc))

    def restore(self, load: Callable[[], Any] | None) -> State[Any]:
        """Put the state together again.

        Args:
            load: Returns the result; None if nobody will ask for it.
        """
        state: State[Any]
        state, metadata = pickle.loads(self.state)  # noqa: S301 (written by our own processes)
        match self.kind:
            case "record":
                state.data = (
                    RemoteRecord.loading(metadata, load)
                    if load is not None
                    else _record(metadata, None)
                )
            case "error":
                state.data = self.content.unpack()
            case "value":
                value = unpack(self.content)
                state.data = value if metadata is None else _record(metadata, value)
        return state


NOT_LOADED = "NotLoaded"
"""Name of the state of a run that Prefect does not know of: its task could not be loaded."""
UNSENDABLE = "Unsendable"
"""Name of the state of a run that Prefect takes for completed, and whose result cannot be had."""


def _unsendable(state: State[Any], value: object, why: Exception) -> State[Any]:
    message = (
        f"The task has run to {state.name}, but its result, a {type(value).__qualname__}, cannot "
        f"be pickled ({type(why).__name__}: {why}), so nothing outside its process can have it. "
        "Return what can be pickled, or None."
    )
    return Failed(
        message=message,
        data=TypeError(message),
        state_details=state.state_details.model_copy(),
        name=UNSENDABLE,
    )


def without_result(state: State[Any]) -> State[Any]:
    """Return a copy of a state for those who only ask how the run has ended."""
    bare = copy.copy(state)
    # Prefect's engine (3.8.8) asks completed upstream runs for their results, and drops them.
    bare.data = True if state.is_completed() else None
    return bare


def _bare(state: State[Any], metadata: ResultRecordMetadata | None = None) -> bytes:
    # Not `model_copy`, which gives a state another id and, in 3.8.8, no timestamp.
    bare = copy.copy(state)
    bare.data = None
    return pickle.dumps((bare, metadata))


def describe(exc: BaseException) -> str:
    """Explain why Ray has no end of a task."""
    from ray import exceptions as ray

    cause = getattr(exc, "cause", None)
    if isinstance(exc, ray.RayTaskError) and isinstance(cause, BaseException):
        exc = cause
    said = str(exc).strip()
    match exc:
        case ray.OutOfMemoryError():
            why = (
                "Ray killed the task's process because its node ran out of memory. Ask for "
                "`memory` in remote_options, or for more CPUs, so that fewer tasks share a node"
            )
        case ray.NodeDiedError():
            why = "The node that the task ran on has died"
        case ray.WorkerCrashedError():
            why = (
                "The process of the task has died: it was killed, has crashed (a segmentation "
                "fault, for example) or has exited"
            )
        case ray.RuntimeEnvSetupError():
            why = "Ray could not set up the runtime environment of the task"
        case ray.ObjectLostError():
            why = "A result that the task needs is lost with its node or its owner"
        case ray.TaskUnschedulableError():
            why = "Ray can place the task nowhere"
        case RayShutDown():
            return said
        case ray.TaskPlacementGroupRemoved():
            why = "The placement group of the task was removed"
        case _:
            why = "Ray could not run the task"
    return f"{why} ({type(exc).__name__}: {said})"


def is_infrastructure(exc: BaseException) -> bool:
    """Return whether the process or the node has died, so that another try could help."""
    from ray import exceptions as ray

    return isinstance(exc, (ray.WorkerCrashedError, ray.NodeDiedError, ray.OutOfMemoryError))
