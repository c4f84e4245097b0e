"""Parcels: pickled values, in a form that Ray moves without copying large arrays.

We pickle ourselves, so that what cannot be pickled or unpickled is an error in our hands, with a
name, and not one of Ray's that hides the task's state.
"""

import hashlib
import pickle
import types
from dataclasses import dataclass, field
from typing import Any, cast

from prefect.tasks import Task


@dataclass(frozen=True)
class Packed:
    """A pickled value.

    Attributes:
        content: The pickle.
        buffers: Its large arrays, which Ray moves without copying them.
    """

    content: bytes
    buffers: list[pickle.PickleBuffer] = field(default_factory=list)


# Below this, an array in shared memory costs more than a copy of it.
_OUT_OF_BAND_BYTES = 64 * 1024
# Ray sends smaller arguments along with a task; larger ones are put into its store once.
_INLINE_BYTES = 48 * 1024


def dumps(value: Any) -> bytes:
    """Pickle a value by Ray's cloudpickle, which knows object references and actors.

    Raises:
        Exception: Whatever the value's own pickling raises.
    """
    from ray import cloudpickle

    return cloudpickle.dumps(value)  # pyright: ignore[reportPrivateImportUsage]


def pack(value: Any) -> Packed:
    """Pickle a value; its large arrays stay apart.

    Raises:
        Exception: Whatever the value's own pickling raises.
    """
    from ray import cloudpickle

    buffers: list[pickle.PickleBuffer] = []

    def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            small = buffer.raw().nbytes < _OUT_OF_BAND_BYTES
        except BufferError:  # not contiguous
            return True
        if not small:
            buffers.append(buffer)
        return small

    content = cloudpickle.dumps(  # pyright: ignore[reportPrivateImportUsage]
        value, protocol=5, buffer_callback=stays_in_band
    )
    return Packed(content, buffers)


def unpack(packed: Packed) -> Any:
    """Return what `pack` was given; large arrays are views into Ray's store, and read-only."""
    return pickle.loads(packed.content, buffers=packed.buffers)  # noqa: S301 (written by our own processes)


@dataclass(frozen=True)
class Blob:
    """Bytes that many tasks of one driver need, sent once where that is worth it.

    Attributes:
        digest: Names the content; what task processes know it by.
        content: The bytes, unless they are in Ray's store.
        stored: A list with the reference; in a list, so that Ray does not fetch it for each task.
    """

    digest: bytes
    content: bytes | None
    stored: list[Any]

    @classmethod
    def of(cls, content: bytes) -> "Blob":
        """Keep the bytes inline, or put them into the store of the connected Ray."""
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if len(content) <= _INLINE_BYTES:
            return cls(digest, content, [])
        import ray

        return cls(digest, None, [ray.put(content)])

    def read(self) -> bytes:
        """Return the bytes, from the store if need be."""
        if self.content is not None:
            return self.content
        import ray

        return ray.get(self.stored[0])


def culprit(task: Task[Any, Any], exc: Exception) -> str:
    """Describe what of a task cannot be pickled: its function's globals, a hook, a policy.

    Args:
        task: The task that could not be.
        exc: What pickling it has raised.
    """
    said = f"{type(exc).__name__}: {exc}"
    found = _search(task.fn, set()) or _attribute(task)
    if found is None:
        return said
    return (
        f"{found} ({said}). Create it inside the task, or pass what is needed to create it as a "
        "parameter."
    )


def _attribute(task: Task[Any, Any]) -> str | None:
    for name, value in vars(task).items():
        if name == "fn" or _is_picklable(value):
            continue
        parts: list[Any] = [value]
        if isinstance(value, list | tuple):  # of hooks
            parts = list(cast("list[Any]", value))
        inside = next((found for part in parts if (found := _search(part, set()))), None)
        return f"its {name}: {inside}" if inside else f"its {name}, a {type(value).__qualname__}"
    return None


def _search(function: Any, seen: set[int]) -> str | None:
    function = getattr(function, "fn", function)
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        return None
    seen.add(id(function))
    where = f"function {function.__qualname__!r} ({function.__module__})"
    for kind, name, value in _references(function):
        if _is_picklable(value):
            continue
        deeper = _search(value, seen)
        if deeper is not None:
            return deeper
        what = f"{kind} {name!r}, a {type(value).__qualname__}"
        return f"{where} uses the {what}, which cannot be pickled"
    return None


def _references(function: types.FunctionType) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            found.append(("variable", name, cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    present = _global_names(function.__code__) & function.__globals__.keys()
    found += [("global", name, function.__globals__[name]) for name in sorted(present)]
    defaults = function.__defaults__ or ()
    found += [("default value", repr(i), value) for i, value in enumerate(defaults)]
    return found


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _is_picklable(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:  # anything may happen in a user's __reduce__
        return False
    return True
