"""`Gateway`: what stands between us and a dashboard and speaks in its own name, as Kubernetes does.

The API server's service proxy passes requests on to Ray. It answers itself, with a JSON `Status`,
if it does not know us, if a rule forbids the request, or if the service has no running head.
Such an answer says nothing about the cluster's jobs.
"""

import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Protocol

import httpx
from pydantic import BaseModel, ValidationError

from prefect_ray_worker.errors import (
    AmbiguousError,
    ClusterUnreachable,
    JobsApiError,
    NotAuthorized,
)
from prefect_ray_worker.shared.plain_text import plain


class Gateway(Protocol):
    """Something in front of a dashboard that wants credentials of its own, renewed at any time.

    They go to the dashboard's address only, never to the agent of a node. Ray's own token then
    goes in `X-Ray-Authorization`. Must be hashable; connections of equal gateways share sockets.
    """

    @property
    def tls(self) -> ssl.SSLContext:
        """TLS settings for the address. May read files."""
        ...

    async def headers(self, refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """Return the headers for the next request.

        Args:
            refused: Headers of a request that the gateway answered with 401; renew them.
        """
        ...


class _ServerStatus(BaseModel):
    kind: str
    message: str = ""
    reason: str = ""


def is_from_api_server(response: httpx.Response) -> bool:
    """Return whether an error is the API server's own, by its headers; Ray's are plain text."""
    return response.headers.get("content-type", "").startswith("application/json")


def error_from_api_server(
    response: httpx.Response, *, address: str, submits: bool
) -> JobsApiError | None:
    """Return the error that the API server's own answer means; None for an answer of Ray.

    Args:
        response: An answer other than 2xx, body read.
        address: Of the dashboard, for the message.
        submits: Whether the request was a submission.
    """
    if not is_from_api_server(response):
        return None
    try:
        status = _ServerStatus.model_validate_json(response.content)
    except ValidationError:
        return None
    if status.kind != "Status":
        return None
    said = " ".join(plain(status.message or status.reason).split())[:400]
    code = response.status_code
    if code == HTTPStatus.UNAUTHORIZED:
        return NotAuthorized(
            f"The Kubernetes API in front of {address} does not accept the worker's credentials "
            f"({said}). Renew those of the kubeconfig; Ray's token is not concerned."
        )
    if code == HTTPStatus.FORBIDDEN:
        return NotAuthorized(
            f"The Kubernetes API in front of {address} forbids the request ({said}). Add a rule "
            "to the worker's Role: resources [services/proxy], verbs [get, create, update, delete]."
        )
    message = f"The Kubernetes API answered in place of {address} (HTTP {code}: {said})."
    # Only of a 404 is it sure that no request was passed on: there is no such service.
    if submits and code != HTTPStatus.NOT_FOUND:
        return AmbiguousError(message)
    return ClusterUnreachable(message)
