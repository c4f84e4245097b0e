"""Packs a flow for the cluster: its local modules, the files it names, and one pickle.

No settings, no context and no key travel. All is packed before a flow run exists, so whatever
cannot be is an exception of the call.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect.flows import Flow

from prefect_ray_worker.bundles.carriers import MOST_BYTES_IN_INPUTS
from prefect_ray_worker.bundles.content import FILES, MANIFEST, PICKLE, Manifest, PackedFlow
from prefect_ray_worker.bundles.files import included_files
from prefect_ray_worker.bundles.modules import local_modules, script_of
from prefect_ray_worker.bundles.parameters import split_parameters
from prefect_ray_worker.bundles.pickling import Dump, ImportsOfScript, NamesOfScript, can_dump, dump
from prefect_ray_worker.errors import BundleRefused, Unpicklable
from prefect_ray_worker.shared.references import unpicklable_in

_OUTSIDE = "outside"
_BIGGEST = 5
_MIB = 1024 * 1024


@dataclass(frozen=True)
class PackedBundle:
    """A flow, ready to be sent.

    Attributes:
        content: The bundle.
        parameters: What the flow run shows as its parameters.
        sizes: The sizes of its parts as they were before they were packed, by name.
    """

    content: bytes
    parameters: dict[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def is_small(self) -> bool:
        """Whether it travels in the inputs of its run."""
        return len(self.content) <= MOST_BYTES_IN_INPUTS

    def too_large(self, why: str) -> BundleRefused:
        """Return the refusal of a bundle that no way takes; it names the largest files.

        Args:
            why: Why Ray's own store does not take it, in a sentence.
        """
        biggest = sorted(self.sizes.items(), key=lambda item: -item[1])[:_BIGGEST]
        listed = ", ".join(f"{name} ({size / _MIB:.1f} MiB)" for name, size in biggest)
        return BundleRefused(
            f"The flow has {len(self.content) / _MIB:.1f} MiB packed, more than "
            f"{MOST_BYTES_IN_INPUTS // _MIB} MiB, which is the most that a flow run holds. {why} "
            f"The largest files: {listed}. Leave them out of include_files, have the flow read "
            "them from storage, or give the work pool a storage block (`prefect work-pool storage "
            "configure`)."
        )


def pack(
    flow: Flow[..., Any],
    parameters: Mapping[str, Any],
    *,
    include_files: Sequence[str] = (),
    include_files_base_dir: str | Path | None = None,
    values_by_inputs: bool = True,
) -> PackedBundle:
    """Pack a flow and the parameters of one run.

    Args:
        flow: The flow.
        parameters: All of the run's parameters.
        include_files: Patterns of files to send along.
        include_files_base_dir: Where they begin; by default in the flow's folder, in a notebook
            the working directory.
        values_by_inputs: Whether the flow's value returns without result storage.

    Raises:
        Unpicklable: Something cannot be pickled.
        BundleRefused: A file must not be sent, or a block holds a secret.
    """
    base = Path(include_files_base_dir or _folder_of(flow.fn)).resolve()
    layout = _Layout(base)
    by_json, by_pickle = split_parameters(flow, parameters)
    pickled = _pickled(flow, by_pickle)
    for folder, files in local_modules(flow.fn, also=pickled.modules).items():
        layout.add_modules(folder, files)
    for path in included_files(list(include_files), base):
        layout.add(path)
    script = script_of(flow.fn)
    manifest = Manifest(
        folder=layout.place_of(base),
        paths=layout.paths,
        script=layout.place_of(script) if script is not None else None,
        sources=pickled.sources,
        values_by_inputs=values_by_inputs,
    )
    with io.BytesIO() as file:
        # A file of a reproducible build may be from 1970, which a zip cannot say.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            archive.writestr(MANIFEST, json.dumps(asdict(manifest)))
            archive.writestr(PICKLE, pickled.content)
            for name, path in sorted(layout.files.items()):
                archive.write(path, f"{FILES}/{name}")
        packed = file.getvalue()
    sizes = {name: path.stat().st_size for name, path in layout.files.items()}
    return PackedBundle(
        packed, by_json, {**sizes, "the flow and its parameters": len(pickled.content)}
    )


class _Layout:
    """Where files are in a bundle: as they are here, below one root."""

    def __init__(self, base: Path) -> None:
        self._root = base
        self._outside: list[Path] = []
        self._added: dict[Path, None] = {}
        self._import_folders: dict[Path, None] = {}

    def add_modules(self, folder: Path, files: Sequence[Path]) -> None:
        """Add source files, and the folder that imports have to look in."""
        self._import_folders[folder] = None
        if folder in self._root.parents:
            self._root = folder  # the flow's folder is a package in it
        for file in files:
            self.add(file)

    def add(self, path: Path) -> None:
        """Add a file."""
        self._added[path] = None

    @property
    def files(self) -> dict[str, Path]:
        """The files, by their place in the bundle."""
        return {self.place_of(path): path for path in self._added}

    @property
    def paths(self) -> list[str]:
        """The folders that imports have to look in, by their place in the bundle."""
        return list(dict.fromkeys(self.place_of(folder) for folder in self._import_folders))

    def place_of(self, path: Path) -> str:
        """Return the place of a path in the bundle."""
        if path == self._root or self._root in path.parents:
            return path.relative_to(self._root).as_posix()
        for folder in self._import_folders:
            if path == folder or folder in path.parents:
                if folder not in self._outside:
                    self._outside.append(folder)
                number = self._outside.index(folder)
                return (Path(f"{_OUTSIDE}-{number}") / path.relative_to(folder)).as_posix()
        return path.name  # the script of a flow whose files begin elsewhere


def _folder_of(function: Any) -> Path:
    """Return the folder of a flow's file; in a notebook or a console the working directory.

    The working directory of a driver is that of the bundle, which has no script.
    """
    script = function.__module__ == "__main__"
    file = script_of(function) if script else Path(function.__code__.co_filename)
    return file.resolve().parent if file is not None and file.is_file() else Path.cwd()


def _arguments_of(flow: Flow[..., Any]) -> dict[str, Any]:
    """Return the arguments that make the same flow of its function (`Flow.with_options`, 3.8.8)."""
    return {
        "name": flow.name,
        "version": flow.version,
        "flow_run_name": flow.flow_run_name,
        "retries": flow.retries,
        "retry_delay_seconds": flow.retry_delay_seconds,
        "task_runner": flow.task_runner,
        "description": flow.description,
        "timeout_seconds": flow.timeout_seconds,
        "validate_parameters": flow.should_validate_parameters,
        "persist_result": flow.persist_result,
        "result_storage": flow.result_storage,
        "result_serializer": flow.result_serializer,
        "cache_result_in_memory": flow.cache_result_in_memory,
        "log_prints": flow.log_prints,
        "on_completion": flow.on_completion_hooks,
        "on_failure": flow.on_failure_hooks,
        "on_cancellation": flow.on_cancellation_hooks,
        "on_crashed": flow.on_crashed_hooks,
        "on_running": flow.on_running_hooks,
    }


def _pickled(flow: Flow[..., Any], parameters: dict[str, Any]) -> Dump:
    packed = PackedFlow(
        flow.fn, _arguments_of(flow), parameters, NamesOfScript(), ImportsOfScript()
    )
    try:
        return dump(packed)
    except BundleRefused:
        raise
    except Exception as exc:
        said = f"{type(exc).__name__}: {exc}"
        culprit = _culprit(packed) or f"the flow {flow.name!r}"
        raise Unpicklable(
            f"{culprit[:1].upper()}{culprit[1:]} cannot be sent to the cluster ({said}). Create it "
            "inside the flow, or move it to a module: modules travel as files."
        ) from exc


def _culprit(packed: PackedFlow) -> str | None:
    for name, value in packed.parameters.items():
        if not can_dump(value):
            return f"the parameter {name!r}, a {type(value).__qualname__},"
    for name, value in packed.arguments.items():
        if not can_dump(value):
            return f"the flow's {name}, a {type(value).__qualname__},"
    found = unpicklable_in(packed.fn, can_dump)
    if found is None:
        return None
    used_by = f"which {found.function.__qualname__!r} uses"
    return f"the {found.kind} {found.name!r}, a {found.type_name} {used_by},"
