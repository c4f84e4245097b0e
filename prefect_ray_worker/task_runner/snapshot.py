"""`TaskSnapshot`: tells whether a task is as it was when it was pickled, without pickling it again.

Pickling a small task takes a good part of a submit. But what its pickle holds is mostly made of
parts that cannot change inside, such as code, numbers and functions of installed packages: it is
the same as long as these are.
"""

import operator
import sys
import types
from collections.abc import Iterable
from datetime import timedelta
from enum import Enum
from typing import Any, cast

from prefect.tasks import Task

from prefect_ray_worker.shared.references import global_names
from prefect_ray_worker.task_runner import modules

_ATOMS = {int, float, complex, str, bytes, bool, type(None), type(...), timedelta}
_CONTAINERS = (list, tuple, set, frozenset, dict)
# Of a container; more are sooner pickled than compared.
_MOST = 20


class TaskSnapshot:
    """What a task was made of.

    Args:
        task: The task.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        self._attributes = [*vars(task).values()]
        self._lengths = _lengths(self._attributes)
        self._deep = [value for value in self._attributes if type(value) not in _ATOMS]
        self._parts = _parts(self._deep)

    def has_same_attributes(self, task: Task[Any, Any]) -> bool:
        """Return whether no attribute of the task was set since, nor a hook added."""
        now = [*vars(task).values()]
        return _are_same(now, self._attributes) and _lengths(now) == self._lengths

    def holds(self, task: Task[Any, Any]) -> bool:
        """Return whether the task certainly has the same pickle."""
        if self._parts is None or not _are_same([*vars(task).values()], self._attributes):
            return False
        now = _parts(self._deep)
        return now is not None and _are_same(now, self._parts)


def _lengths(attributes: list[Any]) -> list[int]:
    return [len(cast("list[Any]", value)) for value in attributes if isinstance(value, list)]


def _are_same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _parts(values: Iterable[Any]) -> list[Any] | None:
    """Return all that values consist of; None if a part of them may change inside."""
    walk = _PartsWalk()
    return walk.parts if all(map(walk.add, values)) else None


def _is_by_name(value: types.FunctionType | type) -> bool:
    """Return whether a value is pickled by its name, in a module that does not change.

    A nested function and the function of a task are not: their closures and globals may change.
    """
    found: Any = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value and not modules.may_change(value.__module__)


class _PartsWalk:
    def __init__(self) -> None:
        self.parts: list[Any] = []
        self._seen: set[int] = set()

    def add(self, value: Any) -> bool:
        """Add what a value consists of; return whether nothing of it may change inside."""
        self.parts.append(value)
        if type(value) in _ATOMS or isinstance(value, Enum) or id(value) in self._seen:
            return True
        self._seen.add(id(value))
        if isinstance(value, types.FunctionType):
            return _is_by_name(value) or self._function(value)
        if isinstance(value, _CONTAINERS) and type(value) not in _CONTAINERS:
            return False  # it may have attributes besides
        if isinstance(value, list | tuple | set | frozenset):
            items = cast("list[Any]", value)
            return len(items) <= _MOST and all(map(self.add, items))
        if isinstance(value, dict):
            entries = cast("dict[Any, Any]", value)
            return len(entries) <= _MOST and all(
                self.add(key) and self.add(item) for key, item in entries.items()
            )
        if isinstance(value, types.ModuleType):
            return not modules.may_change(value.__name__)
        if isinstance(value, types.BuiltinFunctionType):
            return not modules.may_change(value.__module__)
        if isinstance(value, type):
            return _is_by_name(value)
        # Policies, assets and the like, which are small.
        is_prefects = type(value).__module__.startswith("prefect.")
        return is_prefects and all(map(self.add, getattr(value, "__dict__", {}).values()))

    def _function(self, function: types.FunctionType) -> bool:
        self.parts.append(function.__code__)
        for cell in function.__closure__ or ():
            try:
                if not self.add(cell.cell_contents):
                    return False
            except ValueError:  # not assigned yet
                return False
        more = (function.__defaults__, function.__kwdefaults__, function.__dict__)
        names = global_names(function.__code__)
        values = [function.__globals__[name] for name in names if name in function.__globals__]
        return all(map(self.add, (*more, *values)))
