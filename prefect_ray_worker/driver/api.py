"""How a driver asks the Prefect API: patiently, and with an explanation when it gives up."""

import json
import os
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from prefect_ray_worker.prefect_api.answers import why_unsendable
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.loopback import is_loopback_url
from prefect_ray_worker.shared.masking import masked
from prefect_ray_worker.shared.run_rules import (
    Patience,
    is_not_taken,
    is_own_not_found,
    is_passing,
)

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""How long a driver asks an API that does not answer: longer than most restarts of a server.

Looked at between requests, each of which Prefect's client repeats for another minute (3.8.8).
"""

_LONGEST_REASON = 400
_TRUST_ADVICE = (
    "Set env.PREFECT_API_SSL_CERT_FILE to a file on the nodes with the certificate authorities of "
    "the API, or put them into the trust store of the nodes' image."
)
_NOT_FOUND = 404
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class ApiTrouble(Exception):
    """Raised when a driver gives up asking Prefect.

    Attributes:
        code: The exit code by which the worker knows.
        diagnosis: What to tell the user.
    """

    def __init__(self, code: DriverExit, diagnosis: Diagnosis) -> None:
        super().__init__(str(diagnosis))
        self.code = code
        self.diagnosis = diagnosis


def new_patience() -> Patience:
    """Return the patience of one step of a driver, which begins now."""
    return Patience(PATIENCE_SECONDS, now=time.monotonic())


def patiently(ask: Callable[[], T], patience: Patience | None = None) -> T:
    """Ask until the API answers: it may be restarting, or have too much to do.

    Args:
        ask: Sends the request; can be called again without harm.
        patience: After how long the last request begins; by default a minute.

    Raises:
        Exception: What `ask` raised last, or what waiting does not mend.
    """
    patience = patience or new_patience()
    while True:
        try:
            return ask()
        except Exception as exc:
            delay = patience.wait(time.monotonic()) if passes(exc) else None
            if delay is None:
                raise
            time.sleep(delay)


def passes(exc: BaseException) -> bool:
    """Return whether trouble with the Prefect API goes away by waiting.

    That includes a 404 that is not Prefect's own, and a page where Prefect would send JSON: a proxy
    answers so while the server behind it is replaced.
    """
    answer = _answer(exc)
    if answer is not None:
        is_proxys = answer.status_code == _NOT_FOUND and not is_own_not_found(answer.content)
        return is_passing(answer.status_code) or is_proxys
    away = isinstance(exc, httpx.TransportError | json.JSONDecodeError)
    return away and why_unsendable(exc) is None


def was_not_taken(exc: BaseException) -> bool:
    """Return whether a request has certainly changed nothing, and may do so when it is repeated."""
    answer = _answer(exc)
    if answer is not None:
        return is_not_taken(answer.status_code, answer.content)
    return isinstance(exc, _NOT_SENT)


def is_of_prefect(exc: BaseException, api_url: str) -> bool:
    """Return whether an exception comes from a request to the Prefect API, and not to another host.

    Args:
        exc: Any exception.
        api_url: The API's URL.
    """
    if isinstance(exc, ObjectNotFound):
        exc = exc.http_exc
    try:
        request = exc.request if isinstance(exc, httpx.HTTPError) else None
    except RuntimeError:  # httpx knows of no request
        return False
    return request is not None and str(request.url).startswith(api_url.rstrip("/"))


def trouble_with_api(exc: BaseException, api_url: str) -> ApiTrouble:
    """Explain why Prefect cannot be asked.

    Args:
        exc: What asking has raised.
        api_url: The API's URL, as the driver has it.
    """
    place, here = masked(api_url), f"the Ray node {socket.gethostname()}"
    answer = _answer(exc)
    code = answer.status_code if answer is not None else None
    if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        auth = os.environ.get("PREFECT_API_AUTH_STRING", "")
        padded = "; PREFECT_API_AUTH_STRING has a blank or a line end there"
        hint = padded if auth != auth.strip() else ""
        cause = (
            f"The Prefect API at {place} rejected the credentials of {here} (HTTP {code}){hint}."
        )
        why = diagnosed(Category.PREFECT_API_UNAUTHORIZED, cause)
        return ApiTrouble(DriverExit.NOT_AUTHORIZED, why)
    if (setting := why_unsendable(exc)) is not None:
        cause = f"{setting}, on the Ray node {socket.gethostname()}."
        why = diagnosed(Category.PREFECT_SETTING_INVALID, cause)
        return ApiTrouble(DriverExit.BAD_SETTING, why)
    if isinstance(exc, httpx.TransportError) or (code is not None and is_passing(code)):
        hint = "; localhost means the node itself there" if is_loopback_url(api_url) else ""
        cause = f"The Prefect API at {place} does not answer {here} ({in_a_line(exc)}){hint}."
        advice = _TRUST_ADVICE if "CERTIFICATE_VERIFY_FAILED" in str(exc) else None
        why = diagnosed(Category.PREFECT_API_UNREACHABLE, cause, advice=advice)
        return ApiTrouble(DriverExit.API_UNREACHABLE, why)
    cause = (
        f"What answers {here} at {place} does not know the flow run, or is no Prefect API "
        f"({in_a_line(exc)})."
    )
    return ApiTrouble(DriverExit.WRONG_API, diagnosed(Category.PREFECT_API_WRONG, cause))


def _answer(exc: BaseException) -> httpx.Response | None:
    if isinstance(exc, ObjectNotFound):
        exc = exc.http_exc
    if isinstance(exc, PrefectHTTPStatusError | httpx.HTTPStatusError):
        return exc.response
    return None


def in_a_line(exc: BaseException) -> str:
    """Return an exception as one line that shows no secrets."""
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return " ".join(masked(text[: 10 * _LONGEST_REASON]).split())[:_LONGEST_REASON]
