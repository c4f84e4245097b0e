"""The flow's own code, on every node of a cluster that has none of its files.

The flow's folder is uploaded once, as the job's `working_dir`: modules, packages and data files
beside the flow are there, and task processes load the flow's file from it (`modules`). Only where
they cannot, what that file defines travels by value with each task.
"""

import os
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect.logging import get_logger

from prefect_ray_worker.shared.ids import BUNDLE_FOLDER_VARIABLE
from prefect_ray_worker.task_runner import modules
from prefect_ray_worker.task_runner.modules import OwnModules

_log = get_logger("task_runner.ray")

_PACKAGE = Path(__file__).parents[1]
_ENTRYPOINT_VARIABLE = "PREFECT__FLOW_ENTRYPOINT"
_LOADED_SCRIPT = "__prefect_loader_"
_INSTALLED = ("site-packages", "dist-packages")
# Where Ray unpacks working directories (`runtime_env/working_dir.py`, 2.60).
_RAY_UNPACKED = "working_dir_files"
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (those are refused)
_MIB = 1024 * 1024
# Ray refuses more than its largest message (2.60: 500 MiB, or 250 on older heads), zipped. Long
# before that, an upload at the start of each flow is a mistake.
_MOST_BYTES = 100 * _MIB
_BIGGEST = 5


@dataclass(frozen=True)
class Shipped:
    """What a cluster gets.

    Attributes:
        runtime_env: For `ray.init`; empty if the job has all there is.
        paths: For `sys.path` of task processes; relative ones are below the `working_dir`.
        root: What becomes the `working_dir` of task processes; None if its content is unknown.
    """

    runtime_env: dict[str, Any]
    paths: list[str]
    root: Path | None = None


def entry_file() -> Path | None:
    """Return the file of the flow that this process runs, if there is one."""
    entrypoint = os.environ.get(_ENTRYPOINT_VARIABLE, "").rpartition(":")[0]
    if entrypoint.endswith(".py"):
        named: str | None = entrypoint
    else:
        # Of a module, or else of a script that was started; not a command of an environment's.
        main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
        named = getattr(sys.modules.get(entrypoint), "__file__", None) if entrypoint else main
    path = Path(named).resolve() if named else None
    if path is None or not path.is_file() or _PACKAGE in path.parents or _is_installed(path):
        return None
    return None if path.parent == Path(sysconfig.get_path("scripts")).resolve() else path


def entry_folder() -> Path | None:
    """Return the folder from which the flow's file is imported, or in which it lies."""
    file = entry_file()
    if file is None:
        return None
    entrypoint = os.environ.get(_ENTRYPOINT_VARIABLE, "").rpartition(":")[0]
    above = 0 if entrypoint.endswith(".py") else entrypoint.count(".")
    if above and file.name != "__init__.py":
        return file.parents[above]
    return file.parent


def paths() -> list[str]:
    """Return the folders with the flow's code on this machine."""
    entry = entry_folder()
    folders = [Path.cwd(), *([entry] if entry else [])]
    return [str(folder) for folder in dict.fromkeys(folders) if not _is_installed(folder)]


def for_cluster(
    job_env: Mapping[str, Any], own_env: Mapping[str, Any] | None, *, in_job: bool
) -> Shipped:
    """Decide what to ship to a cluster that we join, and merge it with what the job has.

    Args:
        job_env: The Ray Job's `runtime_env`.
        own_env: The user's, from `init_kwargs`.
        in_job: Whether we are in a Ray Job; then its processes have this package as we have it.
    """
    added: dict[str, Any] = {}
    found, given, folder = paths(), own_env or {}, _folder()
    root = unpacked = _unpacked(folder)
    if unpacked is not None:
        found = [*_below(unpacked), *found]
    elif "working_dir" not in given:
        refusal = why_not(folder)
        if refusal is None:
            added["working_dir"] = str(root := folder)
            found = [*_below(folder), *found]
            _log.info("The flow's folder %s is shipped to the Ray cluster", folder)
            if "working_dir" in job_env:
                # The flow's folder is where the driver is; imports find the job's as well there.
                added["py_modules"] = [job_env["working_dir"]]
        else:
            _log.warning("The flow's folder is not shipped to the Ray cluster: %s", refusal)
    if not in_job and not _is_listed(given):
        added["py_modules"] = [*added.get("py_modules", []), str(_PACKAGE)]
    if not added and not given:
        return Shipped({}, found, root)
    return Shipped(merged(job_env, given, added), found, root)


def merged(*envs: Mapping[str, Any]) -> dict[str, Any]:
    """Merge runtime environments: later ones win, lists of modules and variables add up."""
    result: dict[str, Any] = {}
    for env in envs:
        for key, value in env.items():
            if key == "env_vars":
                result[key] = {**result.get(key, {}), **(value or {})}
            elif key == "py_modules":
                result[key] = [*result.get(key, []), *(value or [])]
            else:
                result[key] = value
    return result


def why_not(folder: Path) -> str | None:
    """Say why a folder must not be shipped; None if it may be."""
    if folder == Path(folder.anchor):
        return f"{folder} is the root of the file system. Run the flow from a folder of its own."
    if folder == Path.home() or folder in Path.home().parents:
        return f"{folder} is, or contains, your home. Run the flow from a folder of its own."
    if str(folder) in {*_TEMPORARY, os.environ.get("TMPDIR"), tempfile.gettempdir()}:
        return f"{folder} is for everybody's temporary files. Run the flow from one of its own."
    for pattern in ("session_latest", "*/session_latest", "*/*/session_latest"):
        session = next(folder.glob(pattern), None)
        if session is not None:
            return (
                f"{folder} contains the session directory of a Ray ({session.parent}), where an "
                "upload would pack itself. Run the flow from a folder of its own."
            )
    if _is_installed(folder):
        return f"{folder} holds installed packages; the nodes need them installed as well."
    files = files_to_ship(folder)
    total = sum(files.values())
    if total <= _MOST_BYTES:
        return None
    biggest = sorted(files.items(), key=lambda item: -item[1])[:_BIGGEST]
    listed = ", ".join(f"{path} ({size / _MIB:.1f} MiB)" for path, size in biggest)
    return (
        f"{folder} has {total / _MIB:.0f} MiB, more than {_MOST_BYTES // _MIB}. The biggest files: "
        f"{listed}. List what tasks do not need in .rayignore or .gitignore, or turn this off "
        "with RayTaskRunner(ship_code=False)."
    )


def files_to_ship(folder: Path) -> dict[str, int]:
    """Return the sizes of the files that Ray would upload, by their paths in the folder.

    Empty where Ray cannot be asked: an older one (2.10) selects them by other functions. Its own
    refusal of what is too large names no files.
    """
    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(folder))] = path.stat().st_size
        if sum(sizes.values()) > 20 * _MOST_BYTES or len(sizes) > 100_000:
            raise StopIteration

    with suppress(StopIteration, ImportError, AttributeError, TypeError):
        from ray._private.ray_constants import get_runtime_env_default_excludes
        from ray._private.runtime_env import packaging

        excludes = [packaging._get_excludes(folder, get_runtime_env_default_excludes())]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        packaging._dir_travel(folder, excludes, note, include_gitignore=True)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return sizes


def own_modules(root: Path, paths: list[str]) -> OwnModules:
    """Return the flow's modules that task processes can load.

    Args:
        root: What is their `working_dir`, or the root of the file system that they share with us.
        paths: Where their imports look.
    """
    shared = root == Path(root.anchor)
    folders = tuple(p for p in paths if Path(p).is_absolute() == shared)
    file = entry_file()
    if file is None or root not in file.parents:
        return OwnModules(folders=folders)
    name = next(
        (n for n, m in list(sys.modules.items()) if n != "__main__" and _is_at(m, file)), None
    )
    if name in sys.stdlib_module_names:  # another module over there
        name = None
    return OwnModules(name, str(file if shared else file.relative_to(root)), folders)


def _is_at(module: Any, file: Path) -> bool:
    found = getattr(module, "__file__", None)
    return isinstance(found, str) and found.endswith(file.name) and Path(found).resolve() == file


def travels_if_it_must(function: Any) -> None:
    """Have what the entry script defines travel by value, unless task processes can load it."""
    module = sys.modules.get(getattr(function, "__module__", "") or "")
    if module is None or module.__name__ == "__main__":
        return  # cloudpickle does so with `__main__` by itself
    file = getattr(module, "__file__", None)
    entrypoint = os.environ.get(_ENTRYPOINT_VARIABLE, "")
    if module.__name__.startswith(_LOADED_SCRIPT) or _is_entry_file(file, entrypoint):
        modules.travels(module.__name__, by_value=True)


@lru_cache(256)  # each submit asks; the entrypoint decides it
def _is_entry_file(file: str | None, entrypoint: str) -> bool:
    return file is not None and Path(file).resolve() == entry_file()


def is_unpacked() -> bool:
    """Return whether the flow's folder is in a `working_dir` that Ray has unpacked."""
    return unpacked_root() is not None


def unpacked_root() -> Path | None:
    """Return the `working_dir` that Ray has unpacked and that the flow's folder is in."""
    return _unpacked(_folder())


def _folder() -> Path:
    if bundle := os.environ.get(BUNDLE_FOLDER_VARIABLE):
        return Path(bundle).resolve()
    entry, here = entry_folder(), Path.cwd().resolve()
    return here if entry is None or here in (entry, *entry.parents) else entry


def _below(folder: Path) -> list[str]:
    """Return what of the folder imports find things in here, relative to it."""
    entry = entry_folder()
    places = [folder, *([entry] if entry else []), *(Path(p).absolute() for p in sys.path)]
    below = [p for p in places if (p == folder or folder in p.parents) and not _is_installed(p)]
    return list(dict.fromkeys(str(place.relative_to(folder)) for place in below))


def _unpacked(folder: Path) -> Path | None:
    """Return the root of the `working_dir` that Ray has unpacked and that the folder is in."""
    for place in (folder, *folder.parents):
        if place.parent.name == _RAY_UNPACKED:
            return place
    return None


def _is_installed(folder: Path) -> bool:
    return any(part in _INSTALLED for part in folder.parts)


def _is_listed(env: Mapping[str, Any]) -> bool:
    return any("prefect_ray_worker" in str(module) for module in env.get("py_modules") or [])
