"""Pickles a flow's function and what it needs of its script.

What a module defines travels by name, a saved block by its id, and what a script or notebook
defines by value.
"""

import ast
import dataclasses
import inspect
import io
import linecache
import operator
import pickle
import threading
import types
import typing
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect.blocks.core import Block
from prefect.flows import Flow
from prefect.tasks import Task
from pydantic import BaseModel

from prefect_ray_worker.bundles import content
from prefect_ray_worker.bundles.content import PackedFlow
from prefect_ray_worker.bundles.identity import pickler
from prefect_ray_worker.bundles.modules import is_script, loaded_scripts, namespace_of
from prefect_ray_worker.errors import BundleRefused
from prefect_ray_worker.prefect_api.compat.settings import saved_block_id

# cloudpickle's list of modules to pickle by value is one for the process.
_registry = threading.RLock()


@dataclass(frozen=True)
class Dump:
    """A pickle, the sources of the code in it, and the modules that it refers to by name."""

    content: bytes
    sources: dict[str, str]
    modules: set[str]


class NamesOfScript(dict[str, Any]):
    """Names of a script that no code in a pickle uses, but others look up there.

    `pickle` and `multiprocessing` look for classes and functions, and pydantic for what annotations
    name. Filled while it is pickled, with what belongs to all that came before.
    """


class ImportsOfScript(dict[str, tuple[str, str]]):
    """Names of a script that only annotations use, by the module and the name to import.

    Filled as `NamesOfScript` is, so it has to be pickled after one.
    """


def dump(value: Any) -> Dump:
    """Pickle a value."""
    with io.BytesIO() as file, _registry, _scripts_by_value():
        flow_pickler = _flow_pickler()(file, protocol=pickle.HIGHEST_PROTOCOL)
        flow_pickler.dump(value)
        return Dump(file.getvalue(), flow_pickler.sources, flow_pickler.modules)


@contextmanager
def _scripts_by_value() -> Generator[None]:
    """Pickle by value what no other process could import by its name."""
    import cloudpickle

    known = cloudpickle.list_registry_pickle_by_value()
    scripts = [script for script in loaded_scripts() if script.__name__ not in known]
    for script in scripts:
        cloudpickle.register_pickle_by_value(script)
    try:
        yield
    finally:
        for script in scripts:
            cloudpickle.unregister_pickle_by_value(script)


class _ScriptNotes:
    """What others look up in the script of what was pickled so far."""

    def __init__(self) -> None:
        self.imports: dict[str, tuple[str, str]] = {}
        self._names: dict[str, Any] = {}
        self._sent: set[str] = set()

    def note(self, obj: Any) -> list[str]:
        """Note what belongs to an object; return the modules that annotations name."""
        is_of_script = isinstance(obj, types.FunctionType | type) and is_script(obj.__module__)
        if is_of_script and namespace_of(obj).get(obj.__qualname__) is obj:
            self._names[obj.__qualname__] = obj
        modules: list[str] = []
        for name, value in _names_in_annotations(obj):
            place = _import_of(value)
            if place is None:
                if name not in self._names and can_dump(value):
                    self._names[name] = value
            else:
                self.imports[name] = place
                modules.append(place[0])
        return modules

    def names_left(self) -> Any:
        """Return the reduced form of the names that were not in an earlier one."""
        found = {n: v for n, v in self._names.items() if n not in self._sent}
        self._sent |= self._names.keys()
        # What these name themselves is known once they are pickled. From the standard library,
        # as a driver may have an older release of this package.
        return (operator.or_, (found, NamesOfScript())) if found else (dict, ())


def _flow_pickler() -> Any:
    class _FlowPickler(pickler()):
        """Sends what modules define by name, blocks by id, and notes the source of the rest.

        Notes the modules as well: the flow's own imports need not lead to that of an argument.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.sources: dict[str, str] = {}
            self.modules: set[str] = set()
            self._noted = _ScriptNotes()

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, NamesOfScript):
                return self._noted.names_left()
            if isinstance(obj, ImportsOfScript):
                return dict, (self._noted.imports,)
            self.modules.update(_modules_of(obj))
            found = _by_reference(obj)
            if found is not None:
                return found
            self.modules.update(self._noted.note(obj))
            if isinstance(obj, types.FunctionType) and is_script(obj.__module__):
                self._note_source(obj.__code__.co_filename)
            return super().reducer_override(obj)

        def _note_source(self, name: str) -> None:
            if name not in self.sources and (lines := linecache.getlines(name)):
                self.sources[name] = "".join(lines)

    return _FlowPickler


def _modules_of(obj: Any) -> list[str]:
    """Return the name of the module that has to be there for an object to be unpickled."""
    if isinstance(obj, types.ModuleType):
        return [obj.__name__]
    defined = obj.fn if isinstance(obj, Flow | Task) else obj
    if not isinstance(defined, type | types.FunctionType | types.BuiltinFunctionType):
        return []
    module = getattr(defined, "__module__", None)
    return [module] if isinstance(module, str) else []


def _names_in_annotations(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield what annotations name that are texts, where pydantic will look for it.

    That is in flows and in the classes of their parameters. Others are left out: what only they
    name need not be installed in the cluster, and may take long to import.
    """
    if isinstance(obj, Flow | PackedFlow):
        obj = inspect.unwrap(obj.fn)
    elif not isinstance(obj, type) or not _is_validated(obj):
        return
    if not isinstance(obj, types.FunctionType | type) or not is_script(obj.__module__):
        return
    namespace = namespace_of(obj)
    annotations = vars(obj).get("__annotations__") if isinstance(obj, type) else obj.__annotations__
    for of, annotation in (annotations or {}).items():
        if of == "return" and not isinstance(obj, type):
            continue  # which nobody validates
        yield from ((n, namespace[n]) for n in _names_in(annotation) if n in namespace)


def _is_validated(kind: type) -> bool:
    return (
        dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel) or typing.is_typeddict(kind)
    )


def _import_of(value: Any) -> tuple[str, str] | None:
    """Return the module and the name by which a value can be imported; None for one of a script."""
    if isinstance(value, types.ModuleType):
        return value.__name__, ""
    module = getattr(value, "__module__", None)
    if not isinstance(value, type | types.FunctionType) or not isinstance(module, str):
        return None
    if is_script(module):
        return None
    return module, value.__qualname__


def _names_in(annotation: object) -> Iterator[str]:
    """Yield the names in an annotation that is a text, or has one in it."""
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        try:
            tree = ast.parse(annotation.strip(), mode="eval")
        except (SyntaxError, ValueError):
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node, ast.Constant) and node.value != annotation:
                yield from _names_in(node.value)
        return
    for argument in typing.get_args(annotation):
        yield from _names_in(argument)


def _by_reference(obj: Any) -> Any:
    if isinstance(obj, Block):
        return _block_by_reference(obj)
    function = obj.fn if isinstance(obj, Flow | Task) else obj
    if not isinstance(function, types.FunctionType):
        return None
    module: Any = getattr(function, "__module__", None)  # None for one that `exec` has made
    if module is None or is_script(module):
        return None
    name = (module, function.__qualname__)
    try:
        named = content.attribute_of(*name)
    except (AttributeError, ImportError):
        return None
    if named is obj:
        return (content.attribute_of, name) if isinstance(obj, Flow | Task) else None
    if isinstance(named, Flow | Task) and named.fn is obj:
        return content.function_of, name
    return None


def _block_by_reference(block: Block) -> Any:
    block_id = saved_block_id(block)
    if block_id is not None:
        kind = type(block)
        if kind.__module__.partition(".")[0] == "prefect":
            return content.load_block, (block_id,)
        # Prefect finds a class by its block type only once the class has been defined.
        return content.load_block_of, (kind, block_id)
    secret = block.model_json_schema().get("secret_fields") or []
    held = [name for name in secret if getattr(block, name.partition(".")[0], None)]
    if held:
        raise BundleRefused(
            f"A {type(block).__name__} block with the secret {held[0]} would be sent in plain "
            "text. Save the block first: a saved one travels by reference."
        )
    return None


def can_dump(value: Any) -> bool:
    """Return whether a value can be pickled."""
    try:
        dump(value)
    except Exception:  # noqa: BLE001 (anything may happen in a user's __reduce__)
        return False
    return True
