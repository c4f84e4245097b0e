"""Pickled values, in a form that Ray moves without copying large arrays.

We pickle ourselves, so that what cannot be pickled or unpickled is an error in our hands, with a
name, and not one of Ray's that hides the task's state. Ray still has to see the object references
and actor handles inside values: one that it does not see is kept for ever, or dies with its owner.
"""

import functools
import hashlib
import io
import pickle
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

from prefect.tasks import Task

from prefect_ray_worker.shared.references import unpicklable_in
from prefect_ray_worker.task_runner import modules


@dataclass(frozen=True)
class Packed:
    """A pickled value.

    Attributes:
        content: The pickle.
        buffers: Its large arrays, which Ray moves without copying them.
        refs: Its object references and actor handles.
    """

    content: bytes
    buffers: list[pickle.PickleBuffer] = field(default_factory=list)
    refs: list[Any] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:  # in half the time
        return Packed, (self.content, self.buffers, self.refs)


# Below this, an array in shared memory costs more than a copy of it.
_OUT_OF_BAND_BYTES = 64 * 1024
# Ray sends smaller arguments along with a task; larger ones are put into its store once.
_INLINE_BYTES = 48 * 1024

_refs: ContextVar[list[Any]] = ContextVar("refs")


def _ref(position: int) -> Any:
    return _refs.get()[position]


@functools.cache
def _seen_by_ray() -> tuple[type, ...]:
    import ray
    from ray.actor import ActorHandle

    return ray.ObjectRef, ActorHandle


@functools.cache
def _pickler() -> Any:
    from ray import cloudpickle

    seen_by_ray = _seen_by_ray()
    base: Any = cloudpickle.CloudPickler  # pyright: ignore[reportPrivateImportUsage]

    class ValuePickler(base):
        """Leaves references for Ray to pickle."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.refs: list[Any] = []

        def reducer_override(self, obj: Any) -> Any:
            if issubclass(type(obj), seen_by_ray):
                self.refs.append(obj)
                return _ref, (len(self.refs) - 1,)
            found = modules.reduced(obj)
            return super().reducer_override(obj) if found is None else found

    return ValuePickler


class Packer:
    """Pack values one after the other: a later one refers to the objects of an earlier one.

    So what an object is part of, and what it is the same as, survives in `unpack_all`.

    Args:
        after: Continue after the values of another packer, which stays as it is.
    """

    def __init__(self, after: "Packer | None" = None) -> None:
        self._file = io.BytesIO()
        buffers: list[pickle.PickleBuffer] = []

        def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
            try:
                small = buffer.raw().nbytes < _OUT_OF_BAND_BYTES
            except BufferError:  # not contiguous
                return True
            if not small:
                buffers.append(buffer)
            return small

        self._buffers = buffers
        self._pickler = _pickler()(self._file, protocol=5, buffer_callback=stays_in_band)
        if after is not None:
            before = after._pickler  # noqa: SLF001 (another of us)
            self._pickler.memo = before.memo
            # Of cloudpickle: functions of one module share their globals.
            self._pickler.globals_ref = dict(before.globals_ref)

    def pack(self, value: Any) -> Packed:
        """Pickle a value; its large arrays stay apart.

        Raises:
            Exception: Whatever the value's own pickling raises.
        """
        self._pickler.dump(value)
        packed = Packed(self._file.getvalue(), [*self._buffers], [*self._pickler.refs])
        self._file.seek(0)
        self._file.truncate()
        self._buffers.clear()
        self._pickler.refs.clear()
        return packed


def pack(value: Any) -> Packed:
    """Pickle a value; its large arrays stay apart.

    Raises:
        Exception: Whatever the value's own pickling raises.
    """
    return Packer().pack(value)


def pack_whole(value: Any) -> Packed:
    """Pickle a value with copies of its arrays.

    Raises:
        Exception: Whatever the value's own pickling raises.
    """
    with io.BytesIO() as file:
        pickler = _pickler()(file, protocol=5, buffer_callback=None)
        pickler.dump(value)
        return Packed(file.getvalue(), refs=pickler.refs)


def unpack(packed: Packed) -> Any:
    """Return what was packed; large arrays are views into Ray's store, and read-only."""
    if not packed.refs:
        return pickle.loads(packed.content, buffers=packed.buffers)  # noqa: S301 (our own)
    token = _refs.set(packed.refs)
    try:
        return pickle.loads(packed.content, buffers=packed.buffers)  # noqa: S301 (our own)
    finally:
        _refs.reset(token)


class _PlainPickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.refs: list[Any] = []
        self._seen_by_ray = _seen_by_ray()

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, self._seen_by_ray):
            return None
        self.refs.append(obj)
        return len(self.refs) - 1


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, refs: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(content))
        self._refs = refs

    def persistent_load(self, pid: Any) -> Any:
        return self._refs[pid]


def pack_plain(value: Any) -> tuple[bytes, list[Any]]:
    """Pickle what consists of our own classes, in a third of the time that Ray would take.

    Cloudpickle finds out anew for each class whether it can be imported (Ray 2.60).

    Returns:
        The pickle, and the object references and actor handles in it.
    """
    with io.BytesIO() as file:
        pickler = _PlainPickler(file)
        pickler.dump(value)
        return file.getvalue(), pickler.refs


def unpack_plain(content: bytes, refs: Sequence[Any]) -> Any:
    """Return what `pack_plain` has packed."""
    return _PlainUnpickler(content, refs).load()


class _Parts:
    """A file that is read pickle by pickle: an unpickler remembers the objects of the last one."""

    def __init__(self) -> None:
        self.part = io.BytesIO()

    def read(self, size: int) -> bytes:
        return self.part.read(size)

    def readline(self) -> bytes:
        return self.part.readline()

    def readinto(self, buffer: Any) -> int:
        return self.part.readinto(buffer)


def unpack_all(parts: Sequence[Packed]) -> Any:
    """Return the last of the values that one `Packer` has packed; the others are its parts."""
    file = _Parts()
    buffers = chain.from_iterable(part.buffers for part in parts)
    unpickler = pickle.Unpickler(file, buffers=buffers)  # noqa: S301 (our own)
    value = None
    for part in parts:
        file.part = io.BytesIO(part.content)
        token = _refs.set(part.refs)
        try:
            value = unpickler.load()
        finally:
            _refs.reset(token)
    return value


def digest_of(packed: Packed) -> bytes:
    """Return what names a packed value."""
    digest = hashlib.blake2b(packed.content, digest_size=16)
    for buffer in packed.buffers:
        digest.update(buffer.raw())
    for ref in packed.refs:  # the content only has their positions
        digest.update(repr(ref).encode())
    return digest.digest()


@dataclass(frozen=True)
class Blob:
    """A pickled value that many tasks need, sent once where that is worth it.

    Attributes:
        digest: Names the content; what task processes know it by.
        packed: The value, unless it is in Ray's store.
        stored: A list with the reference; in a list, so that Ray does not fetch it for each task.
    """

    digest: bytes
    packed: Packed | None
    stored: list[Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return Blob, (self.digest, self.packed, self.stored)

    @classmethod
    def of(cls, packed: Packed) -> "Blob":
        """Keep a packed value inline, or put it into the store of the connected Ray."""
        digest = digest_of(packed)
        if len(packed.content) <= _INLINE_BYTES:
            return cls(digest, packed, [])
        import ray

        return cls(digest, None, [ray.put(packed)])

    def load(self) -> Any:
        """Return the value, from the store if need be."""
        if self.packed is not None:
            return unpack(self.packed)
        import ray

        return unpack(ray.get(self.stored[0]))


def culprit(task: Task[Any, Any], exc: Exception) -> str:
    """Describe what of a task cannot be pickled: its function's globals, a hook, a policy.

    Args:
        task: The task that could not be.
        exc: What pickling it has raised.
    """
    said = f"{type(exc).__name__}: {exc}"
    found = _use_in(task.fn) or _attribute(task)
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
        inside = next((found for part in parts if (found := _use_in(part))), None)
        return f"its {name}: {inside}" if inside else f"its {name}, a {type(value).__qualname__}"
    return None


def _use_in(function: Any) -> str | None:
    found = unpicklable_in(function, _is_picklable)
    if found is None:
        return None
    return (
        f"function {found.function.__qualname__!r} ({found.function.__module__}) uses the "
        f"{found.kind} {found.name!r}, a {found.type_name}, which cannot be pickled"
    )


def _is_picklable(value: Any) -> bool:
    try:
        pack_whole(value)
    except Exception:  # anything may happen in a user's __reduce__
        return False
    return True
