"""Which local modules a flow needs, and where they are: files that no node has installed.

They travel as files, so a module with a lock or a class with an identity is in the cluster what it
is here. Loaded modules count, and so do imports that have not run yet: flows often import inside
their functions.
"""

import ast
import dis
import importlib.machinery
import importlib.util
import inspect
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_OWN = "prefect_ray_worker"
_INSTALLED = ("site-packages", "dist-packages")
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", "site-packages"})
_MAIN = "__main__"
# How Prefect names a script that it loads from an entrypoint, if the script's own name is taken
# (`load_script_as_module`, 3.8.8).
_LOADED_SCRIPT = "__prefect_loader_"


def local_modules(function: Any, also: Iterable[str] = ()) -> dict[Path, list[Path]]:
    """Return the source files of local modules that a flow can reach, by import folder.

    An import folder is one that has to be on `sys.path` for the files below it. A package travels
    whole, as its modules may import each other later.

    Args:
        function: The flow's function.
        also: Names of modules that the flow's pickle refers to.
    """
    waiting = [*_imports_of_script(function), *(name.partition(".")[0] for name in also)]
    module = getattr(function, "__module__", _MAIN)
    if not is_script(module):
        waiting.append(module.partition(".")[0])
    found: dict[Path, list[Path]] = {}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for folder, files in _places_of(name):
            found.setdefault(folder, []).extend(files)
            for file in files:
                waiting += _imports_in(file)
    return found


def script_of(function: Any) -> Path | None:
    """Return the script of a function that no module has; None in a notebook or a console.

    In a driver it is where the script would be in the bundle. The file itself has not travelled.
    """
    if getattr(function, "__module__", _MAIN) != _MAIN:
        return None
    name = namespace_of(function).get("__file__")
    return Path(name).resolve() if isinstance(name, str) else None


def is_script(module: str | None) -> bool:
    """Return whether nothing can be imported from a module by its name in another process."""
    return module == _MAIN or (module or "").startswith(_LOADED_SCRIPT)


def loaded_scripts() -> list[types.ModuleType]:
    """Return the modules of scripts that Prefect has loaded under names of its own."""
    return [module for name, module in list(sys.modules.items()) if name.startswith(_LOADED_SCRIPT)]


def is_local(path: Path) -> bool:
    """Return whether a file belongs to a project, and not to Python or an installed package."""
    if any(part in _INSTALLED for part in path.parts):
        return False
    return not any(folder in path.parents for folder in _folders_of_python())


def _folders_of_python() -> list[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    return [Path(sysconfig.get_path(name)).resolve() for name in names]


def namespace_of(defined: Any) -> dict[str, Any]:
    """Return the globals of the script or module of a function or class.

    A function that was unpickled has globals of its own, with what it uses: in a driver,
    `sys.modules["__main__"]` is the driver. A wrapper has those of the module of its decorator.
    """
    home = getattr(defined, "__module__", None)
    own = getattr(inspect.unwrap(defined), "__globals__", {})
    if own.get("__name__") == home or home not in sys.modules:
        return own
    return vars(sys.modules[home])


def _imports_of_script(function: Any) -> Iterator[str]:
    """Yield the top-level names that the flow and what is in its script or notebook import."""
    namespace = namespace_of(function)
    package = str(namespace.get("__package__") or "")
    inner = inspect.unwrap(function)
    for code in (getattr(function, "__code__", None), getattr(inner, "__code__", None)):
        yield from _imports_of_code(code, package)
    if not is_script(getattr(function, "__module__", None)):
        return
    for value in list(namespace.values()):
        yield from _imports_of_value(value, package)
    file = Path(str(namespace.get("__file__") or ""))
    if file.suffix == ".py" and file.is_file():
        yield from _imports_in(file, package)
    elif isinstance(inner, types.FunctionType):
        # A cell of a notebook, or a script in a driver: `unpickle` has left its source there.
        lines = linecache.getlines(inner.__code__.co_filename)
        yield from _imports_in_text("".join(lines), package)


def _imports_of_value(value: Any, package: str) -> Iterator[str]:
    """Yield the top-level names that a value in a script comes from, or imports."""
    if isinstance(value, types.ModuleType):
        yield value.__name__.partition(".")[0]
        return
    # Runs no code of a user, who may have written a `__getattr__`.
    inner = inspect.getattr_static(value, "fn", value)
    if isinstance(inner, types.FunctionType):
        yield from _imports_of_code(inner.__code__, package)
    of_value = getattr(inner, "__module__", None)
    if isinstance(of_value, str):
        yield of_value.partition(".")[0]


def _imports_of_code(code: types.CodeType | None, package: str) -> Iterator[str]:
    if not isinstance(code, types.CodeType):
        return
    loaded: list[Any] = [0, 0]  # before an import: how many dots it has, and the names
    for instruction in dis.get_instructions(code):
        if instruction.opname == "EXTENDED_ARG":
            continue
        if instruction.opname == "IMPORT_NAME":
            yield (package if loaded[0] else str(instruction.argval)).partition(".")[0]
        loaded = [loaded[1], instruction.argval]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imports_of_code(constant, package)


def _imports_in(file: Path, package: str = "") -> Iterator[str]:
    """Yield the top-level names that a source file imports, anywhere in it."""
    if file.suffix != ".py":
        return
    with suppress(OSError):
        yield from _imports_in_text(file.read_bytes(), package)


def _imports_in_text(text: str | bytes, package: str) -> Iterator[str]:
    """Yield the top-level names that source text imports; relative ones are in the package."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (package if node.level else node.module or "").partition(".")[0]


def _places_of(name: str) -> list[tuple[Path, list[Path]]]:
    """Return the import folders and the files of a top-level name; a namespace may have several."""
    if not name or is_script(name) or name == _OWN or name in sys.stdlib_module_names:
        return []
    try:
        spec = getattr(sys.modules.get(name), "__spec__", None) or importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return []
    file = _resolved(spec.origin) if isinstance(spec.origin, str) else None
    # Prefect gives a script that it loads from an entrypoint the locations of a package (3.8.8).
    is_package = file is None or file.name.startswith("__init__.")
    if spec.submodule_search_locations is not None and is_package:
        folders = [_resolved(place) for place in spec.submodule_search_locations]
        local = [f for f in folders if f.is_dir() and is_local(f.resolve() / "__init__.py")]
        return [(folder.parent, list(_sources_below(folder))) for folder in local]
    if file is None or not file.is_file() or not is_local(file.resolve()):
        return []
    return [(file.parent, [file])]


def _resolved(path: str) -> Path:
    """Return a path without links, but for its last part: a module has the name of its link."""
    return Path(path).parent.resolve() / Path(path).name


def _sources_below(folder: Path) -> Iterator[Path]:
    suffixes = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in _SKIPPED_FOLDERS and not path.name.startswith("."):
                yield from _sources_below(path)
        elif path.name.endswith(suffixes):
            yield path
