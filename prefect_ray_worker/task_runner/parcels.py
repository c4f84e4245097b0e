"""Parcels: pickled values, in a form that Ray moves without copying large arrays.

We pickle ourselves, so that what cannot be pickled or unpickled is an error in our hands, with a
name, and not one of Ray's that hides the task's state.
"""

import hashlib
import pickle
from dataclasses import dataclass
from typing import Any

Parcel = tuple[bytes, list[pickle.PickleBuffer]]

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


def pack(value: Any) -> Parcel:
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
    return content, buffers


def unpack(parcel: Parcel) -> Any:
    """Return what `pack` was given; large arrays are views into Ray's store, and read-only."""
    content, buffers = parcel
    return pickle.loads(content, buffers=buffers)  # noqa: S301 (written by our own processes)


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
