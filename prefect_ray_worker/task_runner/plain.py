"""Plain pickles: of what consists of our own classes, in a third of the time that Ray would take.

Cloudpickle finds out anew for each class whether it can be imported (Ray 2.60). What users have
made is in a `Packed` already, and is bytes here.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from prefect_ray_worker.task_runner.pickling import seen_by_ray, unpack


class _PlainPickler(pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, on_large: Callable[[pickle.PickleBuffer], object] | None = None
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=on_large)
        self.refs: list[Any] = []
        self._seen_by_ray = seen_by_ray()

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
    """Pickle what consists of our own classes.

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


def to_ray(value: Any) -> Any:
    """Return what a function of Ray's returns for a value that consists of our own classes.

    That is bytes, which Ray passes on as they are, or the value itself if Ray has to see its
    references or would not copy its large arrays.
    """
    large: list[pickle.PickleBuffer] = []
    with io.BytesIO() as file:
        pickler = _PlainPickler(file, large.append)
        pickler.dump(value)
        return value if large or pickler.refs else file.getvalue()


def from_ray(returned: Any) -> Any:
    """Return the value that `to_ray` was given."""
    return unpack_plain(returned, ()) if isinstance(returned, bytes) else returned


def result_from_ray(returned: Any) -> Any:
    """Return the value whose `Packed` `to_ray` was given."""
    return unpack(from_ray(returned))
