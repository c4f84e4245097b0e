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
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_OWN = "prefect_ray_worker"
_INSTALLED = ("site-packages", "dist-packages")
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", "site-packages"})
_MAIN = "__main__"
# How Prefect names a script that it loads from an entrypoint, if the script's own name is taken
# (`load_script_as_module`, 3.8.8).
_LOADED_SCRIPT = "__prefect_loader_"


def local_modules(function: Any) -> dict[Path, list[Path]]:
    """Return the source files of local modules that a flow can reach, by import folder.

    An import folder is one that has to be on `sys.path` for the files below it. A package travels
    whole, as its modules may import each other later.

    Args:
        function: The flow's function.
    """
    waiting = list(_imports_of_script(function))
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
        if (place := _place_of(name)) is None:
            continue
        folder, files = place
        found.setdefault(folder, []).extend(files)
        for file in files:
            waiting += _imports_in(file)
    return found


def main_file() -> Path | None:
    """Return the script that this process runs; None in a notebook or a console."""
    name = getattr(sys.modules.get(_MAIN), "__file__", None)
    path = Path(name).resolve() if name else None
    return path if path is not None and path.is_file() else None


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


def _imports_of_script(function: Any) -> Iterator[str]:
    """Yield the top-level names that the flow and what is in its script or notebook import."""
    yield from _imports_of_code(getattr(function, "__code__", None))
    home = getattr(function, "__module__", None)
    if not is_script(home):
        return
    module = sys.modules[str(home)]
    for value in list(vars(module).values()):
        if isinstance(value, types.ModuleType):
            yield value.__name__.partition(".")[0]
            continue
        # Runs no code of a user, who may have written a `__getattr__`.
        inner = inspect.getattr_static(value, "fn", value)
        if isinstance(inner, types.FunctionType):
            yield from _imports_of_code(inner.__code__)
        of_value = getattr(inner, "__module__", None)
        if isinstance(of_value, str):
            yield of_value.partition(".")[0]
    script = main_file() if home == _MAIN else Path(str(module.__file__))
    if script is not None and script.suffix == ".py":
        yield from _imports_in(script)


def _imports_of_code(code: types.CodeType | None) -> Iterator[str]:
    if not isinstance(code, types.CodeType):
        return
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            yield str(instruction.argval).partition(".")[0]
    for constant in code.co_consts:
        yield from _imports_of_code(constant if isinstance(constant, types.CodeType) else None)


def _imports_in(file: Path) -> Iterator[str]:
    """Yield the top-level names that a source file imports, anywhere in it."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _place_of(name: str) -> tuple[Path, list[Path]] | None:
    """Return the import folder and the files of a top-level name, or None if it is not local."""
    if not name or is_script(name) or name == _OWN or name in sys.stdlib_module_names:
        return None
    try:
        spec = getattr(sys.modules.get(name), "__spec__", None) or importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return None
    file = Path(spec.origin).resolve() if isinstance(spec.origin, str) else None
    # Prefect gives a script that it loads from an entrypoint the locations of a package (3.8.8).
    is_package = file is None or file.name.startswith("__init__.")
    if spec.submodule_search_locations is not None and is_package:
        folders = [Path(place).resolve() for place in spec.submodule_search_locations]
        folder = next((f for f in folders if f.is_dir() and is_local(f / "__init__.py")), None)
        return None if folder is None else (folder.parent, list(_sources_below(folder)))
    if file is None or not file.is_file() or not is_local(file):
        return None
    return (file.parent, [file])


def _sources_below(folder: Path) -> Iterator[Path]:
    suffixes = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in _SKIPPED_FOLDERS and not path.name.startswith("."):
                yield from _sources_below(path)
        elif path.name.endswith(suffixes):
            yield path
