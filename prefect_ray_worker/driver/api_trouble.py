"""Why a driver cannot talk to Prefect: said on the job's own output, where the worker reads it."""

import socket

import httpx
from prefect.exceptions import PrefectHTTPStatusError

from prefect_ray_worker.diagnosis.text import clean
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.exits import DriverExit, explained
from prefect_ray_worker.shared.loopback import is_loopback_url

_LONGEST_REASON = 400


def without_api(exc: PrefectHTTPStatusError | httpx.TransportError, api_url: str) -> DriverExit:
    """Explain that the API refuses the driver, or does not answer it.

    Args:
        exc: What asking it has raised.
        api_url: As the driver has it.

    Returns:
        The exit code by which the worker knows, and tells the user.
    """
    if isinstance(exc, PrefectHTTPStatusError):
        code = exc.response.status_code
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            cause = f"The Prefect API at {_place(api_url)} refused the credentials of {_here()}"
            refused = diagnosed(Category.PREFECT_API_UNAUTHORIZED, f"{cause} (HTTP {code}).")
            return explained(DriverExit.NOT_AUTHORIZED, refused)
        if code < httpx.codes.INTERNAL_SERVER_ERROR:
            return with_wrong_api(exc, api_url)
    cause = f"The Prefect API at {_place(api_url)} does not answer from {_here()}"
    hint = "; localhost means the node itself there" if is_loopback_url(api_url) else ""
    silent = diagnosed(Category.PREFECT_API_UNREACHABLE, f"{cause} ({_in_a_line(exc)}){hint}.")
    return explained(DriverExit.API_UNREACHABLE, silent)


def with_wrong_api(exc: Exception, api_url: str) -> DriverExit:
    """Explain that something answers which cannot be the API of the worker.

    Args:
        exc: What asking it has raised.
        api_url: As the driver has it.

    Returns:
        The exit code by which the worker knows, and tells the user.
    """
    cause = f"What answers {_here()} at {_place(api_url)} does not know the flow run, or is no API"
    wrong = diagnosed(Category.PREFECT_API_WRONG, f"{cause} ({_in_a_line(exc)}).")
    return explained(DriverExit.WRONG_API, wrong)


def _place(api_url: str) -> str:
    return clean(api_url)[0]  # without credentials


def _here() -> str:
    return f"the Ray node {socket.gethostname()}"


def _in_a_line(exc: Exception) -> str:
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return " ".join(" ".join(clean(text)).split())[:_LONGEST_REASON]
