"""What is in a bundle, and how a driver unpacks it.

A zip with `manifest.json`, `flow.pickle`, and the files of the flow below `files/`. The pickle
holds the function and the *arguments* of `Flow(...)`, not a Flow: the Flow is made where it runs,
with the Prefect and the settings of the cluster.
"""

import importlib
import inspect
import io
import json
import linecache
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

from prefect.blocks.core import Block
from prefect.filesystems import WritableFileSystem
from prefect.flows import Flow
from prefect.results import resolve_result_storage

from prefect_ray_worker.errors import BundleDamaged

MANIFEST = "manifest.json"
PICKLE = "flow.pickle"
FILES = "files"


@dataclass(frozen=True)
class Manifest:
    """What a driver has to know about the content before it unpickles the flow.

    Attributes:
        folder: Where the flow runs, below the root of its files.
        paths: Where its imports look, below that root.
        script: Name of the flow's script below that root, if the flow is in one.
        sources: Source text of code that is in no file here (cells of a notebook, the script), by
            the name that its tracebacks show.
        values_by_inputs: Whether the flow's value returns in the run's inputs. False where result
            storage is configured.
    """

    folder: str = "."
    paths: list[str] = field(default_factory=list)
    script: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    values_by_inputs: bool = True


@dataclass(frozen=True)
class UnpackedBundle:
    """A bundle whose files are on this machine, and whose flow has not been unpickled.

    Attributes:
        root: The folder with its files.
        manifest: The rest.
        pickle: The pickled flow.
    """

    root: Path
    manifest: Manifest
    pickle: bytes

    @property
    def folder(self) -> Path:
        """Where the flow runs."""
        return self.root / self.manifest.folder

    @property
    def paths(self) -> list[str]:
        """The folders in which the flow's imports look."""
        return [str(self.root / path) for path in self.manifest.paths]


@dataclass(frozen=True)
class PackedFlow:
    """What the pickle of a bundle holds.

    Attributes:
        fn: The flow's function.
        arguments: Those of `Flow(...)`.
        parameters: Parameters of the run that JSON would change.
        names: More of the flow's script: what pickles and annotations look up there. None from a
            caller with an older release.
        imports: More of what annotations look up there: module and name, by the script's name.
    """

    fn: Callable[..., Any]
    arguments: dict[str, Any]
    parameters: dict[str, Any]
    names: dict[str, Any] | None = None
    imports: dict[str, tuple[str, str]] | None = None


def unpack(content: bytes, folder: Path) -> UnpackedBundle:
    """Write the files of a bundle to a folder.

    Raises:
        BundleDamaged: The content is no bundle.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            manifest = Manifest(**json.loads(archive.read(MANIFEST)))
            pickled = archive.read(PICKLE)
            root = folder / FILES
            root.mkdir(exist_ok=True)
            for name in archive.namelist():
                if name.startswith(f"{FILES}/"):
                    _refuse_leading_out(name)
                    archive.extract(name, folder)
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as exc:
        raise BundleDamaged(f"The content of the bundle cannot be read ({exc}).") from exc
    unpacked = UnpackedBundle(root, manifest, pickled)
    unpacked.folder.mkdir(parents=True, exist_ok=True)
    return unpacked


def _refuse_leading_out(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leads out of the folder")


def unpickle(bundle: UnpackedBundle) -> PackedFlow:
    """Unpickle the flow. Its imports have to be possible: see `UnpackedBundle.paths`.

    Raises:
        Exception: Whatever the flow's modules raise when they are imported.
    """
    for name, text in bundle.manifest.sources.items():
        # Without a time, `linecache` never compares it with the file system (3.11).
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    packed: PackedFlow = pickle.loads(bundle.pickle)  # noqa: S301 (checked, and code by its nature)
    script = bundle.manifest.script
    namespace = _globals_of_script(packed)
    for name, value in {**_imported(packed.imports or {}), **(packed.names or {})}.items():
        namespace.setdefault(name, value)
    if script is not None and namespace:
        namespace["__file__"] = str(bundle.root / script)
    return packed


def _imported(places: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return what can be imported here; without the rest only an annotation has no meaning."""
    found: dict[str, Any] = {}
    for name, (module, attribute) in places.items():
        with suppress(Exception):  # an import runs any code
            loaded = importlib.import_module(module)
            found[name] = attribute_of(module, attribute) if attribute else loaded
    return found


def _globals_of_script(packed: PackedFlow) -> dict[str, Any]:
    namespace: dict[str, Any] = getattr(inspect.unwrap(packed.fn), "__globals__", {})
    return namespace if namespace.get("__name__") == "__main__" else {}


def be_main(packed: PackedFlow) -> None:
    """Let this process have the caller's script, if something is of one, as its `__main__`.

    `pickle` and `multiprocessing` look there for what the script defines, and `typing` for what its
    annotations name. It is a new module: a script may have names that the present one needs.
    """
    namespace = {**(packed.names or {}), **_globals_of_script(packed)}
    if not namespace:
        return
    script = types.ModuleType("__main__")
    # Without a file: a process that `multiprocessing` spawns would run it, and it is not here.
    vars(script).update({n: v for n, v in namespace.items() if not n.startswith("__")})
    sys.modules["__main__"] = script


def make_flow(packed: PackedFlow) -> Flow[..., Any]:
    """Return the flow that a bundle holds."""
    return Flow(packed.fn, **packed.arguments)


def attribute_of(module: str, qualified_name: str) -> Any:
    """Return what a module calls by a name: how tasks, flows and functions of modules travel."""
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in qualified_name.split("."):
        found = getattr(found, part)
    return found


def function_of(module: str, qualified_name: str) -> Any:
    """Return the function of a flow or task that a module defines."""
    return attribute_of(module, qualified_name).fn


def load_block(block_id: UUID) -> WritableFileSystem:
    """Return a saved block by its id: how blocks travel."""
    return resolve_result_storage(block_id, _sync=True)  # pyright: ignore[reportCallIssue]


def load_block_of(_kind: type[Block], block_id: UUID) -> Any:
    """Return a saved block of a class that Prefect does not have itself, which is defined by now.

    Args:
        _kind: The class: to unpickle it imports its module.
        block_id: The block.
    """
    return load_block(block_id)
