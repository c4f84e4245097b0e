"""Where a driver gets its flow from: `Workspace` is the folder, a `FlowSource` knows the way.

The way is a deployment, with its pull steps and its entrypoint, or a bundle that the process that
called the flow has left in the run's inputs.
"""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import MissingFlowError, ScriptError
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.bundles.carriers import read_content, read_header
from prefect_ray_worker.bundles.content import (
    PackedFlow,
    UnpackedBundle,
    be_main,
    load_block,
    make_flow,
    unpack,
    unpickle,
)
from prefect_ray_worker.driver.api import (
    is_of_prefect,
    new_patience,
    passes,
    trouble_with_api,
)
from prefect_ray_worker.errors import BundleDamaged, BundleMissing, BundlePythonMismatch
from prefect_ray_worker.prefect_api.compat.flows import load_flow, prepare_workspace
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.ids import BUNDLE_FOLDER_VARIABLE
from prefect_ray_worker.shared.masking import masked

_LONGEST_CAUSE = 2_000

_log = logging.getLogger("prefect.ray.driver")


class FlowSource(Protocol):
    """Gives a driver the flow of its run."""

    def fetch(self, flow_run: FlowRun, folder: Path) -> None:
        """Bring the flow's code to this machine and change to the folder that it is in.

        Args:
            flow_run: The run.
            folder: An empty folder for it, which goes when the run has ended.
        """
        ...

    def load(self, flow_run: FlowRun) -> Flow[..., Any]:
        """Return the flow, whose code has been fetched."""
        ...

    def parameters(self, flow_run: FlowRun) -> dict[str, Any] | None:
        """Return the parameters of the run, or None for those that Prefect has."""
        ...

    def explain(self, exc: BaseException) -> Diagnosis:
        """Return why the flow could not be fetched or loaded.

        Args:
            exc: What one of the two has raised.
        """
        ...


class DeploymentSource:
    """Gets the flow that a run's deployment names."""

    def __init__(self) -> None:
        self._entrypoint: str | None = None

    def fetch(self, flow_run: FlowRun, folder: Path) -> None:
        """Run the deployment's pull steps."""
        self._entrypoint = anyio.run(prepare_workspace, flow_run.id, folder)
        os.environ["PREFECT__FLOW_ENTRYPOINT"] = self._entrypoint

    def load(self, flow_run: FlowRun) -> Flow[..., Any]:
        """Load the flow from its entrypoint, as the pull steps have left it."""
        return load_flow(flow_run)

    def parameters(self, flow_run: FlowRun) -> dict[str, Any] | None:
        """Return None: Prefect has them."""
        return None

    def explain(self, exc: BaseException) -> Diagnosis:
        """Return why a pull step failed, or why the entrypoint leads to no flow."""
        away = next((link for link in _chain(exc) if _is_away(link)), None)
        if away is not None:
            return trouble_with_api(away, _api_url()).diagnosis
        return of_load_failure(exc, self._entrypoint)


class BundleSource:
    """Gets the flow from the bundle that its caller has left in the run's inputs.

    Attributes:
        values_by_inputs: Whether the caller expects the flow's value in the run's inputs.
    """

    def __init__(self) -> None:
        self.values_by_inputs = True
        self._bundle: UnpackedBundle | None = None
        self._packed: PackedFlow | None = None

    def fetch(self, flow_run: FlowRun, folder: Path) -> None:
        """Read the bundle and unpack its files. A bundle of another Python is refused before."""
        with get_client(sync_client=True) as client:
            header = read_header(client, flow_run.id)
            header.check_python()
            content = read_content(client, flow_run.id, header, load_block)
        self._bundle = bundle = unpack(content, folder)
        self.values_by_inputs = bundle.manifest.values_by_inputs
        os.chdir(bundle.folder)
        os.environ[BUNDLE_FOLDER_VARIABLE] = str(bundle.root)
        find_modules_in(bundle.paths)

    def load(self, flow_run: FlowRun) -> Flow[..., Any]:
        """Unpickle the flow's function, and make the flow of it."""
        assert self._bundle is not None
        self._packed = unpickle(self._bundle)
        be_main(self._packed)
        return make_flow(self._packed)

    def parameters(self, flow_run: FlowRun) -> dict[str, Any] | None:
        """Return those of the run, with those that JSON would have changed."""
        assert self._packed is not None
        return {**flow_run.parameters, **self._packed.parameters}

    def explain(self, exc: BaseException) -> Diagnosis:
        """Return what is wrong with the bundle, or why its flow could not be unpickled."""
        for link in _chain(exc):
            for kind, category in _OF_BUNDLES.items():
                if isinstance(link, kind):
                    return diagnosed(category, masked(str(link)), advice=_BUNDLE_ADVICE.get(kind))
        away = next((link for link in _chain(exc) if _is_away(link)), None)
        if away is not None:
            return trouble_with_api(away, _api_url()).diagnosis
        return of_load_failure(exc, None)


_OF_BUNDLES: dict[type[Exception], Category] = {
    BundlePythonMismatch: Category.PYTHON_VERSION_MISMATCH,
    BundleMissing: Category.BUNDLE_MISSING,
    BundleDamaged: Category.BUNDLE_DAMAGED,
}
_BUNDLE_ADVICE: dict[type[Exception], str] = {
    BundlePythonMismatch: "Call the flow from the Python version of the job, or choose the job's "
    "with runtime_env.conda or the image of the Ray nodes."
}


def source_of(flow_run: FlowRun) -> DeploymentSource | BundleSource:
    """Return where a run's flow comes from."""
    return BundleSource() if flow_run.deployment_id is None else DeploymentSource()


class Workspace:
    """A folder of one run's own, in which its flow is loaded.

    Git clones and the like of several runs on one node must not meet. Leaving the context removes
    the folder.

    Args:
        flow_run: The run.
        source: Where its flow comes from.
    """

    def __init__(self, flow_run: FlowRun, source: FlowSource) -> None:
        self._flow_run = flow_run
        self._source = source
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        """Return the workspace; `open_flow` makes its folder."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the folder, as far as this user can: what stays must not fail a run that ended."""
        if self._folder is None:
            return
        # It ignores only some errors: not that a file of another user cannot be removed (3.11).
        with suppress(OSError, RecursionError):
            self._folder.cleanup()
        if Path(self._folder.name).exists():
            _log.debug("The flow's folder %s could not be removed.", self._folder.name)

    def open_flow(self) -> Flow[..., Any]:
        """Fetch and load the flow; its modules can be imported from now on.

        Raises:
            Exception: Whatever the flow's source or its code raises; see `FlowSource.explain`.
        """
        self._fetch()
        find_modules_in([str(Path.cwd())])
        return self._source.load(self._flow_run)

    def _fetch(self) -> None:
        """Fetch the code, anew where the Prefect API fails meanwhile: it may be restarting."""
        patience, before = new_patience(), Path.cwd()
        # Here, and not at first: a full disk is to be explained like any other failed fetch.
        self._folder = tempfile.TemporaryDirectory(
            prefix="prefect-flow-run-", ignore_cleanup_errors=True
        )
        while True:
            folder = tempfile.mkdtemp(dir=self._folder.name)
            try:
                self._source.fetch(self._flow_run, Path(folder))
            except Exception as exc:
                away = any(map(_is_away, _chain(exc)))
                delay = patience.wait(time.monotonic()) if away else None
                if delay is None:
                    raise
                os.chdir(before)
                time.sleep(delay)
            else:
                return


def find_modules_in(folders: list[str]) -> None:
    """Have imports look in these folders first, also in processes that the flow starts."""
    sys.path[:0] = folders
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([inherited] if inherited else [])])


def _is_away(exc: BaseException) -> bool:
    return passes(exc) and is_of_prefect(exc, _api_url())


def _api_url() -> str:
    return str(PREFECT_API_URL.value() or "")


def of_load_failure(exc: BaseException, entrypoint: str | None) -> Diagnosis:
    """Return why a deployment's flow could not be loaded.

    Args:
        exc: What preparing or loading it raised.
        entrypoint: The flow's, as the pull steps have left it; None if they failed.
    """
    # The user's own exception explains more than Prefect's wrapper.
    raised = exc.user_exc if isinstance(exc, ScriptError) else exc
    text = masked(f"{type(raised).__name__}: {raised}"[:_LONGEST_CAUSE])
    headline = f"The flow could not be loaded: {text}"
    for link in _chain(exc):
        if entrypoint is not None and _names_nothing(entrypoint, link):
            cause = f"The entrypoint {entrypoint!r} leads to no flow. {headline}"
            return diagnosed(Category.ENTRYPOINT_NOT_FOUND, cause)
        if isinstance(link, ModuleNotFoundError):
            cause = f"The driver did not find the module {link.name or str(link)!r}. {headline}"
            return diagnosed(Category.MODULE_NOT_FOUND, cause)
    return diagnosed(Category.FLOW_NOT_LOADED, headline)


def _names_nothing(entrypoint: str, exc: BaseException) -> bool:
    """Return whether the entrypoint itself is missing, and not something that its code needs.

    An entrypoint is `path/to/file.py:flow`, `module:flow` or `module.flow` (Prefect 3.8).
    """
    place = entrypoint.rpartition(":")[0] or entrypoint.rpartition(".")[0]
    if isinstance(exc, ModuleNotFoundError):
        return exc.name is not None and f"{place}.".startswith(f"{exc.name}.")
    if isinstance(exc, FileNotFoundError):
        return exc.filename is not None and Path(exc.filename) == Path(place).absolute()
    return isinstance(exc, MissingFlowError)


def _chain(exc: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = exc
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
