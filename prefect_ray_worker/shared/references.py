"""What a function refers to, and which of that cannot be pickled."""

import functools
import importlib
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A class has to stay what `dataclasses` takes it for: `MISSING` is compared by `is`.
_SENTINELS_OF = {"dataclasses": ("_TYPE", "_CLASS"), "functools": (), "inspect": ()}
SENTINELS = {
    id(value): (module, name)
    for module, kinds in _SENTINELS_OF.items()
    for name, value in vars(importlib.import_module(module)).items()
    if type(value) is object or type(value).__name__.endswith(kinds)
}
"""By id, module and name of instances that would come out of a pickle as others."""


@dataclass(frozen=True)
class Reference:
    """A value that a function uses besides its parameters.

    Attributes:
        function: The function.
        kind: `variable` of an enclosing function, `global` or `default value`.
        name: The value's name there; the position of a default value.
        value: The value.
    """

    function: types.FunctionType
    kind: str
    name: str
    value: Any

    @property
    def type_name(self) -> str:
        """The name of the value's type."""
        return type(self.value).__qualname__


@functools.lru_cache(4096)
def global_names(code: types.CodeType) -> frozenset[str]:
    """Return the names of globals and attributes that code uses, inner functions included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return frozenset(names)


def unpicklable_in(function: Any, is_picklable: Callable[[Any], bool]) -> Reference | None:
    """Return the innermost value that keeps a function from being pickled; None if there is none.

    Args:
        function: A function, or what wraps one as `fn`, such as a flow or a task.
        is_picklable: Returns whether a value can be pickled.
    """
    return _search(function, is_picklable, set())


def _search(function: Any, is_picklable: Callable[[Any], bool], seen: set[int]) -> Reference | None:
    # Runs no code of a user, who may have written a `__getattr__`.
    function = inspect.getattr_static(function, "fn", function)
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        return None
    seen.add(id(function))
    for reference in _references(function):
        if not is_picklable(reference.value):
            return _search(reference.value, is_picklable, seen) or reference
    return None


def _references(function: types.FunctionType) -> list[Reference]:
    found: list[Reference] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            found.append(Reference(function, "variable", name, cell.cell_contents))
        except ValueError:  # not assigned yet
            continue
    present = global_names(function.__code__) & function.__globals__.keys()
    found += [Reference(function, "global", n, function.__globals__[n]) for n in sorted(present)]
    defaults = enumerate(function.__defaults__ or ())
    found += [Reference(function, "default value", str(i), value) for i, value in defaults]
    return found
