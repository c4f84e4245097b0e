"""Where a driver gets its flow from: `Workspace` is the folder, a `FlowSource` knows the way.

Today the way is a deployment: its pull steps and its entrypoint.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import anyio
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import MissingFlowError, ScriptError
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.driver.api import (
    is_of_prefect,
    new_patience,
    passes,
    trouble_with_api,
)
from prefect_ray_worker.prefect_api.compat import load_flow, prepare_workspace
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.masking import masked

_LONGEST_CAUSE = 2_000


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

    def explain(self, exc: BaseException) -> Diagnosis:
        """Return why a pull step failed, or why the entrypoint leads to no flow."""
        away = next((link for link in _chain(exc) if _is_away(link)), None)
        if away is not None:
            return trouble_with_api(away, _api_url()).diagnosis
        return of_load_failure(exc, self._entrypoint)


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
        self._folder = tempfile.TemporaryDirectory(
            prefix="prefect-flow-run-", ignore_cleanup_errors=True
        )

    def __enter__(self) -> Self:
        """Return the workspace; its folder exists already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the folder."""
        self._folder.cleanup()

    def open_flow(self) -> Flow[..., Any]:
        """Fetch and load the flow; its modules can be imported from now on.

        Raises:
            Exception: Whatever the flow's source or its code raises; see `FlowSource.explain`.
        """
        self._fetch()
        here = str(Path.cwd())
        sys.path.insert(0, here)
        # Processes that the flow starts have to find its modules as well.
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *([inherited] if inherited else [])])
        return self._source.load(self._flow_run)

    def _fetch(self) -> None:
        """Fetch the code, anew where the Prefect API fails meanwhile: it may be restarting."""
        patience, before = new_patience(), Path.cwd()
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
