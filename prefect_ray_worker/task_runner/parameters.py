"""`ParameterPickler`: packs the parameters of submits; a large value is stored once for many.

Each submit has to pickle its parameters, because their owner may change them before Ray has the
task. But what comes out the same is kept once, in Ray's store, for as long as tasks need it. Only
within one `map` are parameters taken for unchanged, so that a large one is pickled once.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from prefect.tasks import Task
from prefect.utilities.annotations import BaseAnnotation

from prefect_ray_worker.errors import Unpicklable
from prefect_ray_worker.task_runner.pickling import Packed, Packer, digest_of, pack


@dataclass(frozen=True, eq=False)
class StoredValue:
    """A packed value in Ray's store.

    Attributes:
        ref: The reference.
    """

    ref: Any


ParameterParts = tuple[Packed | StoredValue, ...]
"""Parameters, packed in parts: the last one is all of them, and refers to the others."""
_Begun = tuple[Packer, list[Packed | StoredValue]]
_Key = tuple[tuple[str, int], ...]

_in_map: ContextVar[dict[_Key, _Begun] | None] = ContextVar("in_map", default=None)


@contextmanager
def unchanged_parameters() -> Generator[None, None, None]:
    """Take parameters for unchanged within this block, as one `map` does."""
    token = _in_map.set({})
    try:
        yield
    finally:
        _in_map.reset(token)


class ParameterPickler:
    """Pack parameters, and remember which of them were large."""

    def __init__(self) -> None:
        self._stored: WeakValueDictionary[bytes, StoredValue] = WeakValueDictionary()
        # For each task, its large parameters and which values they had.
        self._large: dict[str, dict[str, int]] = {}

    def pack(self, task: Task[Any, Any], parameters: dict[str, Any]) -> ParameterParts:
        """Pack the parameters of a submit.

        Raises:
            Unpicklable: One of them cannot be pickled; names it.
        """
        try:
            return self._pack(task.task_key, parameters)
        except Exception as exc:
            for name, value in parameters.items():
                try:
                    pack(value)
                except Exception as why:
                    raise Unpicklable(
                        f"Parameter {name!r} of task {task.name!r}, a {type(value).__qualname__}, "
                        f"cannot be sent to the cluster: {type(why).__name__}: {why}"
                    ) from exc
            raise

    def _pack(self, task_key: str, parameters: dict[str, Any]) -> ParameterParts:
        large = self._large.get(task_key)
        names, packer, parts = [], Packer(), []
        if large:
            values = {n: _unwrapped(v) for n, v in parameters.items()}
            # Unchanged ones first: a value has the same pickle only after the same others.
            unchanged = [n for n in large if n in values and large[n] == id(values[n])]
            names = [*unchanged, *(n for n in large if n in values and n not in unchanged)]
            packer, parts = self._begin(unchanged, values)
            parts += [self._kept(packer.pack(values[n])) for n in names[len(unchanged) :]]
        whole = packer.pack(parameters)
        if not large and not whole.is_large:
            return (whole,)
        values = {n: _unwrapped(v) for n, v in parameters.items()}
        if whole.is_large:
            names += [n for n in values if n not in names]
            packer = Packer()
            parts = [self._kept(packer.pack(values[n])) for n in names]
            whole = packer.pack(parameters)
        self._large[task_key] = {
            name: id(values[name])
            for name, part in zip(names, parts, strict=True)
            if isinstance(part, StoredValue)
        }
        return (*parts, self._kept(whole))

    def _begin(self, names: list[str], values: dict[str, Any]) -> _Begun:
        begun = _in_map.get()
        if begun is None or not names:
            packer = Packer()
            return packer, [self._kept(packer.pack(values[n])) for n in names]
        key = tuple((name, id(values[name])) for name in names)
        if key not in begun:
            packer = Packer()
            parts = [self._kept(packer.pack(values[n])) for n in names]
            begun.clear()
            begun[key] = packer, parts  # which keep the values: an `id` names nothing else
        packer, parts = begun[key]
        return Packer(after=packer), [*parts]

    def _kept(self, packed: Packed) -> Packed | StoredValue:
        """Put what is large into Ray's store, once: arrays, too, are now as they are."""
        if not packed.is_large:
            return packed
        import ray

        digest = digest_of(packed)
        stored = self._stored.get(digest)
        if stored is None:
            stored = self._stored[digest] = StoredValue(ray.put(packed))
        return stored


def _unwrapped(value: Any) -> Any:
    # `map` wraps an unmapped one anew for each submit (Prefect 3.8.8).
    return value.unwrap() if isinstance(value, BaseAnnotation) else value


def references(parts: ParameterParts, arguments: list[Any]) -> list[Packed | int]:
    """Return the parts for a call, references of stored ones added to its arguments."""
    found: list[Packed | int] = []
    for part in parts:
        if isinstance(part, StoredValue):
            arguments.append(part.ref)
            found.append(len(arguments) - 1)
        else:
            found.append(part)
    return found
