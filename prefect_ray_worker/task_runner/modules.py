"""`OwnModules`: the flow's own modules, which a task's process loads instead of getting by value.

What travels by value becomes something else over there: another class with the same name, another
sentinel, a lock that cannot be pickled. So where a task's process can load the flow's file, under
the name that Prefect gave it, what the file defines travels by name, and a function of a task
travels as its code, to be run with the globals of the loaded module. Globals with other values than
those the module is loaded with travel along.
"""

import functools
import importlib
import importlib.util
import inspect
import operator
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from prefect.flows import Flow
from prefect.tasks import Task

from prefect_ray_worker.shared.references import SENTINELS, global_names
from prefect_ray_worker.task_runner import generators
from prefect_ray_worker.task_runner.generators import PackedGlobal

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class OwnModules:
    """The modules that task processes can load.

    Attributes:
        script: Name of the flow's file among the loaded modules, if it can be loaded.
        file: The file; relative to the `working_dir` of tasks, or absolute.
        folders: The folders in which imports find the flow's modules, likewise.
    """

    script: str | None = None
    file: str | None = None
    folders: tuple[str, ...] = ()

    def below(self, root: Path) -> "OwnModules":
        """Return them with paths in a folder."""
        file = str(root / self.file) if self.file else None
        return OwnModules(self.script, file, tuple(str(root / f) for f in self.folders))

    def load(self) -> None:
        """Load the flow's file under its name, unless it is loaded."""
        if self.script is None or self.file is None or self.script in sys.modules:
            return
        folder = str(Path(self.file).parent)
        # As Prefect loads it (`load_script_as_module`, 3.8.8).
        spec = importlib.util.spec_from_file_location(
            self.script, self.file, submodule_search_locations=[folder, str(Path.cwd())]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.script] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[self.script]
            raise

    def has(self, name: str | None) -> bool:
        """Return whether a module is one of them."""
        if not name or name == "__main__":
            return False
        return name == self.script or _is_in(name, self.folders)


@functools.lru_cache(1024)
def _is_in(name: str, folders: tuple[str, ...]) -> bool:
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or name.partition(".")[0] == _PACKAGE or not file.startswith(folders):
        return False
    path = name.replace(".", "/")
    candidates = (Path(f) / p for f in folders for p in (f"{path}.py", f"{path}/__init__.py"))
    return Path(file).resolve() in [candidate.resolve() for candidate in candidates]


class _Process:
    own = OwnModules()
    by_value: set[str] = set()  # noqa: RUF012 (one for a process)
    given: "Globals" = {}  # noqa: RUF012


def use(own: OwnModules) -> None:
    """Have what is pickled from now on refer to these modules by name."""
    _Process.own = own


def travels(name: str, *, by_value: bool) -> None:
    """Have what a module defines travel by value if it is not one of those, else by name."""
    from ray import cloudpickle

    wanted = by_value and not _Process.own.has(name)
    if wanted and name not in _Process.by_value:
        _Process.by_value.add(name)
        cloudpickle.register_pickle_by_value(sys.modules[name])
    elif not wanted and name in _Process.by_value:
        _Process.by_value.discard(name)
        cloudpickle.unregister_pickle_by_value(sys.modules[name])


def may_change(name: str | None) -> bool:
    """Return whether what a module defines is the flow's own, so that a flow may change it."""
    own = _Process.own.has(name) or name in _Process.by_value
    return own or name is None or name == "__main__"


def reduced(obj: Any) -> Any:
    """Return how an object is pickled that cloudpickle would make another one of; or None."""
    kind = type(obj)
    if kind is types.FunctionType:
        return _reduced_function(obj)
    if kind.__name__ == "_lru_cache_wrapper":
        return _reduced_cache(obj)
    if issubclass(kind, type):
        return _reduced_generic(obj)
    name = SENTINELS.get(id(obj)) or _own_sentinel(obj, kind)
    return (_attribute, name) if name else generators.reduced(obj)


def _reduced_generic(model: type) -> Any:
    # `Box[Item]` of pydantic: no module has it by that name, but `Box` gives the same one again.
    made_of = vars(model).get("__pydantic_generic_metadata__") or {}
    origin, arguments = made_of.get("origin"), made_of.get("args")
    return (operator.getitem, (origin, arguments)) if origin and arguments else None


def _attribute(module: str, name: str) -> Any:
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _own_sentinel(obj: Any, kind: type) -> tuple[str, str] | None:
    own = _Process.own
    if kind is object:
        names = [name for name in list(sys.modules) if own.has(name)]
    elif own.has(kind.__module__) and _has_no_content(obj, kind):
        names = [kind.__module__]
    else:
        return None
    for module in names:
        for name, value in vars(sys.modules[module]).items():
            if value is obj:
                return module, name
    return None


def _has_no_content(obj: Any, kind: type) -> bool:
    """Return whether nothing of an object would get lost if it travelled by name.

    A subclass of `dict` or `list` has its items, and one with slots its values, beside `__dict__`.
    """
    by_default: Any = object
    names = ("__reduce_ex__", "__reduce__", "__getstate__")
    if any(getattr(kind, name) is not getattr(by_default, name) for name in names):
        return False  # it says itself what to keep, and code of a user is not run to find out
    if hasattr(kind, "__getnewargs__") or hasattr(kind, "__getnewargs_ex__"):
        return False
    if isinstance(obj, (dict, list)):
        return False
    try:
        content = object.__reduce_ex__(obj, 2)[1:]
    except Exception:  # a `threading.local`, a connection: it cannot travel in another way
        return not getattr(obj, "__dict__", True)
    return content == ((kind,), None, None, None)


def _is_named(obj: Any) -> bool:
    try:
        return _attribute(obj.__module__, obj.__qualname__) is obj
    except Exception:  # `<locals>`, or a module that has gone
        return False


def _reduced_function(function: types.FunctionType) -> Any:
    name = function.__module__
    if not _Process.own.has(name) or _is_named(function):
        return None
    if function.__globals__ is not vars(sys.modules[name]):
        return None
    closure = function.__closure__
    state = {
        "defaults": function.__defaults__,
        "kwdefaults": function.__kwdefaults__,
        "annotations": function.__annotations__,
        "qualname": function.__qualname__,
        "doc": function.__doc__,
        "dict": function.__dict__,
        "closure": closure,
    }
    made = (function.__code__, name, function.__name__, len(closure or ()))
    return _function, made, state, None, None, _set_function


def _function(code: types.CodeType, module: str, name: str, cells: int) -> types.FunctionType:
    closure = tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(code, vars(importlib.import_module(module)), name, None, closure)


def _set_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    function.__defaults__, function.__kwdefaults__ = state["defaults"], state["kwdefaults"]
    function.__annotations__, function.__doc__ = state["annotations"], state["doc"]
    function.__qualname__ = state["qualname"]
    function.__dict__.update(state["dict"])
    for cell, given in zip(function.__closure__ or (), state["closure"] or (), strict=True):
        try:
            cell.cell_contents = given.cell_contents
        except ValueError:  # not assigned yet
            continue


def _reduced_cache(cached: Any) -> Any:
    name = cached.__module__
    if name != "__main__" and name not in _Process.by_value and _is_named(cached):
        return None
    parameters = cached.cache_parameters()
    return _cached, (cached.__wrapped__, parameters["maxsize"], parameters["typed"])


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


Globals = dict[tuple[str, str], PackedGlobal]


def globals_of(task: Task[Any, Any], pack: Callable[[Any], Any]) -> Globals:
    """Return the packed values of own globals that a task can reach, by module and name.

    Args:
        task: The task.
        pack: Pickles a value; what it raises for stays as the module has it.
    """
    found: Globals = {}
    _Walk(found, pack).function(task.fn)
    return found


def set_globals(found: Globals, pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
    """Give own globals the values of the driver, where the driver's have changed.

    What tasks themselves have changed here since, a cache for example, stays. So does a value that
    differs only in the states of random generators: from the driver's, all processes would draw
    the same numbers.
    """
    for key, given in found.items():
        module, path = key
        owner, _, name = path.rpartition(".")
        holder = _attribute(module, owner) if owner else importlib.import_module(module)
        last = _Process.given.get(key)
        if last is None:
            try:
                last = PackedGlobal.of(vars(holder)[name], pack)
            except Exception:  # it has none of that name, or one that cannot be pickled
                last = None
        if last is None or not given.is_as(last):
            setattr(holder, name, unpack(given.packed))
        _Process.given[key] = given


# The second is that of `lru_cache`.
_FUNCTIONS = (types.FunctionType, type(functools.lru_cache(int)))


class _Walk:
    """From a function to what it can reach in own modules."""

    def __init__(self, found: Globals, pack: Callable[[Any], Any]) -> None:
        self._found = found
        self._pack = pack
        self._seen: set[int] = set()

    def function(self, function: Any) -> None:
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        wrapped = _function_in(function, "__wrapped__")
        if wrapped is not None:
            self.function(wrapped)
        if not isinstance(function, types.FunctionType):
            return
        if not _Process.own.has(function.__module__):
            return
        names = global_names(function.__code__)
        for cell in function.__closure__ or ():
            try:
                self._value("", "", cell.cell_contents, names, is_data=False)
            except ValueError:  # not assigned yet
                continue
        for name in sorted(names & function.__globals__.keys()):
            self._value(function.__module__, name, function.__globals__[name], names)

    def _value(
        self, module: str, name: str, value: Any, names: frozenset[str], *, is_data: bool = True
    ) -> None:
        if isinstance(value, types.ModuleType):
            if _Process.own.has(value.__name__) and id(value) not in self._seen:
                self._seen.add(id(value))
                for attribute in sorted(names & vars(value).keys()):
                    self._value(value.__name__, attribute, vars(value)[attribute], names)
        elif isinstance(value, (Task, Flow)):
            self.function(value.fn)
        elif isinstance(value, (type, types.FunctionType)) or _function_in(value, "__wrapped__"):
            if isinstance(value, type):
                self._class(value)
            else:
                self.function(value)
            if is_data and getattr(value, "__qualname__", name) != name:  # not its definition
                self._data(module, name, value)
        elif is_data and not name.startswith("__") and not reduced(value):
            self._data(module, name, value)

    def _class(self, kind: type) -> None:
        if id(kind) in self._seen or not _Process.own.has(kind.__module__) or not _is_named(kind):
            return
        self._seen.add(id(kind))
        for name, value in list(vars(kind).items()):
            inner = value if isinstance(value, _FUNCTIONS) else _function_of_class(value)
            if inner is not None:
                self.function(inner)
            elif not name.startswith("__") and not issubclass(kind, Enum) and not _describes(value):
                self._data(kind.__module__, f"{kind.__qualname__}.{name}", value)

    def _data(self, module: str, name: str, value: Any) -> None:
        try:
            self._found[module, name] = PackedGlobal.of(value, self._pack)
        except Exception:  # a lock, a connection: as the module has it
            return


def _function_in(value: Any, name: str) -> Any:
    """Return the function that a value has as an attribute, or what wraps one; None without one.

    Runs no code of a user: some objects answer every name, or raise other errors for it.
    """
    seen: set[int] = set()
    while value is not None and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, types.MethodType):
            value = value.__func__
        found = inspect.getattr_static(value, name, None)
        if isinstance(found, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            try:
                found = found.__get__(value)
            except (AttributeError, TypeError):  # a slot that is not set, or of an instance
                found = None
        if isinstance(found, _FUNCTIONS):
            return found
        value = found  # a task, or another decorator
    return None


def _function_of_class(value: Any) -> Any:
    # A class method, a static one or a property.
    return _function_in(value, "__func__") or _function_in(value, "fget")


def _describes(value: Any) -> bool:
    return isinstance(value, type) or hasattr(type(value), "__get__")
