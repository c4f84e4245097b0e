"""Map an answer of the Jobs API, or the lack of one, to an error. Pure.

Ray 2.60 reports errors as plain text with odd status codes (a duplicate id is a 500, and so is
a bad label selector), so the text must be read. `docs/explanation/jobs-api.md` lists the cases.
"""

from http import HTTPStatus
from typing import Literal

import httpx

from prefect_ray_worker.errors import (
    AmbiguousError,
    ClusterUnreachable,
    JobAlreadyExists,
    JobNotFound,
    JobNotTerminal,
    JobsApiError,
    NotAuthorized,
    NotRayDashboard,
    PackageNotFound,
    RequestRejected,
    TlsFailed,
)
from prefect_ray_worker.ray_api.gateway import error_from_api_server
from prefect_ray_worker.shared.masking import masked
from prefect_ray_worker.shared.plain_text import plain
from prefect_ray_worker.shared.tls import failed_handshake

Effect = Literal["safe", "submits"]
"""Whether repeating the request is safe. All requests are idempotent except a submission."""

_GATEWAY_TROUBLE = frozenset({408, 425, 429, 502, 503, 504})
_LONGEST_EXCERPT = 400


def error_from_response(response: httpx.Response, *, address: str, effect: Effect) -> JobsApiError:
    """Return the error that an answer other than 2xx means.

    Args:
        response: The whole answer, body read.
        address: The cluster's address, for the message.
        effect: Whether the request was a submission.

    Returns:
        The error to raise; never a bare `JobsApiError`.
    """
    told = error_from_api_server(response, address=address, submits=effect == "submits")
    return told or _error_of_ray(response, address, effect)


def _error_of_ray(response: httpx.Response, address: str, effect: Effect) -> JobsApiError:
    code, text = response.status_code, response.text
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return NotAuthorized(
            f"The Ray cluster at {address} refused our credentials (HTTP {code}: "
            f"{_excerpt(text)}). Set the token of the `cluster` block, or start the worker "
            "with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        )
    if "already exists" in text and code in (HTTPStatus.BAD_REQUEST, 500):
        return JobAlreadyExists(f"{address} already has a job with this submission id.")
    if "non-terminal state" in text:
        return JobNotTerminal(f"{address} deletes finished jobs only: {_cause(text)}")
    if code == HTTPStatus.NOT_FOUND:
        return _meaning_of_404(text, address)
    # Before the look for HTML: proxies dress their 502, 503 and 504 in it.
    if code in _GATEWAY_TROUBLE:
        return _unclear(f"{address} answered HTTP {code}: {_excerpt(text)}", effect)
    if response.is_redirect or (code < HTTPStatus.INTERNAL_SERVER_ERROR and _is_html(response)):
        return _not_a_dashboard(address, f"HTTP {code} with {_describe_body(response)}")
    if code == HTTPStatus.METHOD_NOT_ALLOWED:
        return RequestRejected(
            f"{address} takes the worker for a browser (HTTP 405). Remove `Origin`, `Referer` and "
            "`User-Agent: Mozilla…` from the headers of the `cluster` block and of any proxy."
        )
    if code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return RequestRejected(f"{address} rejected the request (HTTP {code}): {_cause(text)}")
    if "Request failed with status code 4" in text:
        # The dashboard wraps its agent's 400 into a 500 (job_head.py, Ray 2.60).
        return RequestRejected(f"{address} rejected the job: {_cause(text)}")
    return _unclear(f"{address} answered HTTP {code}: {_cause(text)}", effect)


def error_from_unusable_body(
    response: httpx.Response, *, address: str, effect: Effect
) -> JobsApiError:
    """Return the error for a 2xx answer whose body is not what the endpoint promises."""
    if _is_html(response):
        return _not_a_dashboard(address, f"HTTP {response.status_code} with an HTML page")
    return _unclear(f"{address} answered with {_describe_body(response)}", effect)


def error_from_transport(
    exc: httpx.HTTPError | httpx.InvalidURL, *, address: str, effect: Effect
) -> JobsApiError:
    """Return the error for a request without a complete answer.

    Without a connection the request was never sent; after that it may have arrived.
    """
    if isinstance(exc, httpx.LocalProtocolError):
        return error_from_illegal_header(address=address)
    reason = reason_of(exc)
    if isinstance(exc, httpx.ConnectError) and failed_handshake(exc):
        return TlsFailed(
            f"TLS with {address} failed ({reason}). For a private authority set `ca_file` of "
            "the `cluster` block; Ray itself serves plain http, so check the scheme as well."
        )
    if isinstance(exc, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return NotRayDashboard(f"{address} is not an http(s) address ({reason}).")
    never_sent = isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    message = f"No answer from the Ray cluster at {address} ({reason})."
    if never_sent:
        return ClusterUnreachable(
            f"{message} Check that its dashboard runs and is reachable from this worker."
        )
    return _unclear(message, effect)


def reason_of(exc: Exception) -> str:
    """Return an error of httpx in words, without secrets: it may quote a URL with a password."""
    return masked(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)


def error_from_illegal_header(*, address: str) -> RequestRejected:
    """Return the error for a header that HTTP does not allow; httpx's message quotes the secret."""
    return RequestRejected(
        f"A header, a cookie or the token for {address} has a character that HTTP does not "
        "allow there, such as a line end or an accent. Correct it in the `cluster` block."
    )


def _unclear(message: str, effect: Effect) -> JobsApiError:
    return AmbiguousError(message) if effect == "submits" else ClusterUnreachable(message)


def _meaning_of_404(text: str, address: str) -> JobsApiError:
    # An ingress without a backend answers 404 too, and its page may say "does not exist".
    # Only Ray's own sentence means "no such job".
    if text.startswith("Job ") and "does not exist" in text:
        return JobNotFound(f"{address}: {_excerpt(text)}")
    if text.startswith("Package gcs://") and "does not exist" in text:
        return PackageNotFound(f"{address}: {_excerpt(text)}")
    return _not_a_dashboard(address, f"HTTP 404: {_excerpt(text)}")


def _not_a_dashboard(address: str, what: str) -> NotRayDashboard:
    return NotRayDashboard(
        f"{address} does not answer as a Ray dashboard ({what}). Use the dashboard's address, "
        "for example http://ray-head:8265, with any path prefix of your ingress, and put the "
        "headers or cookies of a login proxy into the `cluster` block."
    )


def _is_html(response: httpx.Response) -> bool:
    return "text/html" in response.headers.get("content-type", "") or response.text.lstrip()[
        :15
    ].lower().startswith(("<!doctype", "<html"))


def _describe_body(response: httpx.Response) -> str:
    if response.is_redirect:
        return "a redirect"
    return f"an unexpected body: {_excerpt(response.text)!r}"


def _cause(text: str) -> str:
    """Return the last line of a traceback, which holds the error."""
    # The dashboard ends a wrapped traceback with a line that holds only a full stop.
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    return _excerpt(lines[-1] if lines else "")


def _excerpt(text: str) -> str:
    text = " ".join(masked(plain(text)).split()) or "no body"
    return text if len(text) <= _LONGEST_EXCERPT else text[:_LONGEST_EXCERPT] + "…"
