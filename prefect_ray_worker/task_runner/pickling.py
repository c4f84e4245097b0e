"""Pickled values, in a form that Ray moves without copying large arrays.

We pickle ourselves, so that what cannot be pickled or unpickled is an error in our hands, with a
name, and not one of Ray's that hides the task's state. Ray still has to see the object references
and actor handles inside values: one that it does not see is kept for ever, or dies with its owner.
"""

import functools
import hashlib
import itertools
import pickle
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from prefect.tasks import Task

from prefect_ray_worker.shared.references import unpicklable_in
from prefect_ray_worker.task_runner import modules

Piece = bytes | memoryview
"""A part of a pickle."""


@dataclass(frozen=True)
class Packed:
    """A pickled value.

    What is large in `content` and `more` is a view into Ray's store once it has come from there.

    Attributes:
        content: The pickle, or the beginning of it.
        buffers: Its large arrays, which Ray moves without copying them.
        refs: Its object references and actor handles.
        more: The rest of the pickle, in which large `bytes` are pieces of their own.
    """

    content: Piece
    buffers: list[pickle.PickleBuffer] = field(default_factory=list)
    refs: list[Any] = field(default_factory=list)
    more: list[Piece] = field(default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:  # in half the time
        more = [_for_ray(piece) for piece in self.more]
        return Packed, (_for_ray(self.content), self.buffers, self.refs, more)

    @property
    def is_large(self) -> bool:
        """Whether Ray (2.60) would rather store than send it."""
        size = len(self.content) + sum(map(len, self.more))
        return bool(self.buffers) or size > _LARGE_BYTES


# Ray (2.60) sends smaller arguments along with a task, and puts larger ones into its store.
_LARGE_BYTES = 100 * 1024
# Below this, an array in shared memory costs more than a copy of it.
_OUT_OF_BAND_BYTES = 64 * 1024
# Ray sends smaller arguments along with a task; larger ones are put into its store once.
_INLINE_BYTES = 48 * 1024

_refs: ContextVar[list[Any]] = ContextVar("refs")


def _ref(position: int) -> Any:
    return _refs.get()[position]


@functools.cache
def seen_by_ray() -> tuple[type, ...]:
    """Return the classes of object references and actor handles, which Ray has to pickle."""
    import ray
    from ray.actor import ActorHandle

    return ray.ObjectRef, ActorHandle


@functools.cache
def _pickler() -> Any:
    from ray import cloudpickle

    seen = seen_by_ray()
    base: Any = cloudpickle.CloudPickler  # pyright: ignore[reportPrivateImportUsage]

    class ValuePickler(base):
        """Leaves references for Ray to pickle."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.refs: list[Any] = []

        def reducer_override(self, obj: Any) -> Any:
            if issubclass(type(obj), seen):
                self.refs.append(obj)
                return _ref, (len(self.refs) - 1,)
            found = modules.reduced(obj)
            return super().reducer_override(obj) if found is None else found

    return ValuePickler


def _for_ray(piece: Piece) -> Any:
    """Return what Ray does not copy, neither here nor there, if a piece is large."""
    return pickle.PickleBuffer(piece) if len(piece) >= _OUT_OF_BAND_BYTES else piece


class _Chunks:
    """A file to pickle into. Pickle (3.11) writes large `bytes` as they are."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.write = self._chunks.append

    def take(self) -> bytes:
        """Return all that was written, and forget it."""
        content = b"".join(self._chunks)
        self._chunks.clear()
        return content

    def take_pieces(self) -> list[Piece]:
        """Do the same without copying large `bytes`."""
        if len(self._chunks) == 1:
            return [self.take()]
        pieces: list[Piece] = []
        for is_large, chunks in itertools.groupby(self._chunks, _is_large_bytes):
            found = list(chunks)
            pieces += found if is_large else [b"".join(found)]
        self._chunks.clear()
        return pieces


def _is_large_bytes(chunk: object) -> bool:
    # Others may change later, such as a `bytearray`.
    return type(chunk) is bytes and len(chunk) >= _OUT_OF_BAND_BYTES


class Packer:
    """Pack values one after the other: a later one refers to the objects of an earlier one.

    So what an object is part of, and what it is the same as, survives in `unpack_all`.

    Args:
        after: Continue after the values of another packer, which stays as it is.
    """

    def __init__(self, after: "Packer | None" = None) -> None:
        self._file = _Chunks()
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
        first, *more = self._file.take_pieces()
        packed = Packed(first, [*self._buffers], [*self._pickler.refs], more)
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
    file = _Chunks()
    pickler = _pickler()(file, protocol=5, buffer_callback=None)
    pickler.dump(value)
    return Packed(file.take(), refs=pickler.refs)


def unpack(packed: Packed) -> Any:
    """Return what was packed; large arrays are views into Ray's store, and read-only."""
    if packed.more:
        return unpack_all([packed])
    if not packed.refs:
        return pickle.loads(packed.content, buffers=packed.buffers)  # noqa: S301 (our own)
    token = _refs.set(packed.refs)
    try:
        return pickle.loads(packed.content, buffers=packed.buffers)  # noqa: S301 (our own)
    finally:
        _refs.reset(token)


class _Parts:
    """A file that is read pickle by pickle: an unpickler remembers the objects of the last one."""

    def __init__(self) -> None:
        self._pieces: list[memoryview] = []

    def open(self, packed: Packed) -> None:
        """Read this from now on."""
        self._pieces = [memoryview(piece) for piece in (packed.content, *packed.more)][::-1]

    def read(self, size: int) -> bytes:
        return b"".join(self._next(size))

    def readline(self) -> bytes:  # pickle asks that there is one; protocol 5 has no lines
        raise NotImplementedError

    def readinto(self, buffer: memoryview) -> int:
        at = 0
        for found in self._next(len(buffer)):
            buffer[at : at + len(found)] = found
            at += len(found)
        return at

    def _next(self, size: int) -> Generator[memoryview, None, None]:
        while size and self._pieces:
            piece = self._pieces.pop()
            if len(piece) > size:
                self._pieces.append(piece[size:])
            yield piece[:size]
            size -= min(size, len(piece))


def unpack_all(parts: Sequence[Packed]) -> Any:
    """Return the last of the values that one `Packer` has packed; the others are its parts."""
    if len(parts) == 1 and not parts[0].more:
        return unpack(parts[0])
    file = _Parts()
    buffers = itertools.chain.from_iterable(part.buffers for part in parts)
    unpickler = pickle.Unpickler(file, buffers=buffers)  # noqa: S301 (our own)
    value = None
    for part in parts:
        file.open(part)
        token = _refs.set(part.refs)
        try:
            value = unpickler.load()
        finally:
            _refs.reset(token)
    return value


def digest_of(packed: Packed) -> bytes:
    """Return what names a packed value."""
    # With the instructions that most processors have for it, twice as fast as BLAKE2.
    digest = hashlib.sha256(packed.content)
    for piece in packed.more:
        digest.update(piece)
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
    def of(cls, packed: Packed, digest: bytes | None = None) -> "Blob":
        """Keep a packed value inline, or put it into the store of the connected Ray."""
        digest = digest or digest_of(packed)
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
