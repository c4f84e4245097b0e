"""Why a flow could not be loaded: from the exception to a diagnosis."""

from collections.abc import Iterator
from pathlib import Path

from prefect.exceptions import MissingFlowError, ScriptError

from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed


def of_load_failure(exc: BaseException, entrypoint: str | None) -> Diagnosis:
    """Say why a flow could not be loaded.

    Args:
        exc: What preparing or loading it raised.
        entrypoint: The flow's, as the pull steps have left it; None if they failed.
    """
    # What its code has raised says more than that it did.
    raised = exc.user_exc if isinstance(exc, ScriptError) else exc
    headline = f"The flow could not be loaded: {type(raised).__name__}: {raised}"
    for link in _chain(exc):
        if entrypoint is not None and _names_nothing(entrypoint, link):
            cause = f"The entrypoint {entrypoint!r} leads to no flow. {headline}"
            return diagnosed(Category.ENTRYPOINT_NOT_FOUND, cause)
        if isinstance(link, ModuleNotFoundError):
            cause = f"The driver did not find the module {link.name or str(link)!r}. {headline}"
            return diagnosed(Category.MODULE_NOT_FOUND, cause)
    return diagnosed(Category.FLOW_NOT_LOADED, headline)


def _names_nothing(entrypoint: str, exc: BaseException) -> bool:
    """Say whether it is the entrypoint itself, not something that its code wants, that is missing.

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
