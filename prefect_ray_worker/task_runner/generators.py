"""Random generators among globals: each process keeps its own, with a state of its own.

A generator that travels takes the flow's state along, and all task processes would draw the same
numbers from it. Those of `random` and `numpy.random` themselves therefore travel by name. Others
travel only where a task's process has none in their place.
"""

import functools
import importlib
import random
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

# Bound methods of the one generator that each of these modules has for its functions.
_OF_A_MODULE = (("random", "random"), ("numpy.random", "random_sample"))


@dataclass
class _Watch:
    hides: bool
    found: set[str] = field(default_factory=set[str])


_watch: ContextVar[_Watch | None] = ContextVar("_watch", default=None)


@functools.cache
def _numpys(_: ModuleType) -> tuple[type, ...]:
    # Waits until another thread has imported it.
    module = importlib.import_module("numpy.random")
    return module.Generator, module.RandomState, module.BitGenerator


def reduced(obj: Any) -> Any:
    """Return how a random generator is pickled; None for anything else, and for ordinary state."""
    numpy = sys.modules.get("numpy.random")  # importing it would take a tenth of a second
    if not isinstance(obj, random.Random) and not (numpy and isinstance(obj, _numpys(numpy))):
        return None
    for module, method in _OF_A_MODULE:
        function = getattr(sys.modules.get(module), method, None)
        if getattr(function, "__self__", None) is obj:
            return _generator_of, (module, method)
    watch = _watch.get()
    if watch is None:
        return None
    name = f"{type(obj).__module__}.{type(obj).__qualname__}"
    watch.found.add(name)
    return (str, (name,)) if watch.hides else None


def _generator_of(module: str, method: str) -> Any:
    return getattr(importlib.import_module(module), method).__self__


@contextmanager
def _watching(*, hides: bool) -> Generator[_Watch]:
    watch = _Watch(hides)
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)


@dataclass(frozen=True)
class PackedGlobal:
    """A pickled value of a global.

    Attributes:
        packed: The value.
        without_states: Its pickle without the states of the random generators in it; None if it
            has none.
    """

    packed: Any
    without_states: bytes | None

    @classmethod
    def of(cls, value: Any, pack: Callable[[Any], Any]) -> "PackedGlobal":
        """Pickle a value.

        Raises:
            Exception: Whatever `pack` raises.
        """
        with _watching(hides=False) as watch:
            packed = pack(value)
        if not watch.found:
            return cls(packed, None)
        with _watching(hides=True):
            return cls(packed, pack(value).content)

    def is_as(self, other: "PackedGlobal") -> bool:
        """Return whether both are the same but for states of generators, and refer to nothing."""
        if self.packed.refs or self.without_states != other.without_states:
            return False
        return self.without_states is not None or self.packed.content == other.packed.content
