"""Map an answer of the Kubernetes API, or the lack of one, to an error. Pure.

The API server explains itself in a JSON `Status`. A path that it does not serve is answered in
plain text instead (observed on 1.36). A proxy or load balancer before it answers in HTML.
"""

import re
from http import HTTPStatus

from pydantic import BaseModel, Field, ValidationError

from prefect_ray_worker.errors import (
    AlreadyThere,
    Conflict,
    KubeRayMissing,
    KubernetesError,
    KubernetesForbidden,
    KubernetesRejected,
    KubernetesUnauthorized,
    KubernetesUnclear,
    KubernetesUnreachable,
    ManifestRefused,
    NamespaceTerminating,
    NotKubernetes,
    ObjectMissing,
    ObjectReplaced,
    QuotaExceeded,
)
from prefect_ray_worker.kubernetes_api.request import RAY_API, ApiRequest
from prefect_ray_worker.shared.plain_text import plain

_LONGEST_EXCERPT = 400
# What Go's `http.NotFound` writes, and so the API server for a group that it does not serve.
_NO_SUCH_PATH = "404 page not found"
_UNKNOWN_FIELD = re.compile(r'(?:unknown|duplicate) field "([^"]+)"')
# "Invalid value: <value>: must be …". The value can be a secret of the manifest's environment: a
# quoted text, a structure as Go or JSON writes it (then cut as much as could be it), or one word.
_INVALID_VALUE = re.compile(
    r'(Invalid value:) (?:"(?:[^"\\]|\\.)*"|[^\s"]*[{\[].*[}\]]|[^\s"{\[]+?)(?::\s+|(?=[,\]])|$)'
)


class _Cause(BaseModel):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(BaseModel):
    kind: str = ""
    name: str = ""
    causes: list[_Cause] | None = None


class _ApiStatus(BaseModel):
    kind: str
    api_version: str = Field(alias="apiVersion")
    message: str = ""
    reason: str = ""
    details: _Details | None = None

    @property
    def causes(self) -> list[_Cause]:
        return (self.details.causes if self.details is not None else None) or []

    @property
    def about(self) -> str:
        return self.details.kind if self.details is not None else ""


def error_from_answer(
    code: int, body: bytes, *, server: str, request: ApiRequest
) -> KubernetesError:
    """Return the error that an answer other than 2xx means.

    Args:
        code: The HTTP status.
        body: The beginning of the body.
        server: The API server's address, for the message.
        request: What was asked.

    Returns:
        The error to raise; never a bare `KubernetesError`.
    """
    status = _status_in(body)
    text = body.decode("utf-8", errors="replace")
    if status is None:
        return _error_without_status(code, text, server, request)
    said = _without_values(status.message) or status.reason or f"HTTP {code}"
    match code:
        case HTTPStatus.UNAUTHORIZED:
            return _unauthorized(server, said)
        case HTTPStatus.FORBIDDEN:
            return _meaning_of_403(status, said, request)
        case HTTPStatus.NOT_FOUND:
            return ObjectMissing(
                f"Kubernetes has no {request.what}: {said}",
                resource=status.about or request.resource.partition(".")[0],
            )
        case HTTPStatus.CONFLICT:
            return _meaning_of_409(status, said, request)
        case HTTPStatus.BAD_REQUEST | HTTPStatus.UNPROCESSABLE_ENTITY:
            return _rejected(status, said, request)
        case HTTPStatus.GONE | HTTPStatus.TOO_MANY_REQUESTS:
            return KubernetesUnreachable(f"{server} asks for another try (HTTP {code}): {said}")
        case _ if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return no_answer(f"{server} answered HTTP {code}: {said}", request)
        case _:
            return KubernetesRejected(
                f"Kubernetes rejected the request for {request.what} (HTTP {code}): {said}"
            )


def no_answer(message: str, request: ApiRequest, *, sent: bool = True) -> KubernetesUnreachable:
    """Return the error for a request without an answer that decides anything.

    Args:
        message: What happened.
        request: What was asked.
        sent: Whether the request can have arrived.
    """
    if sent and request.changes:
        return KubernetesUnclear(message)
    return KubernetesUnreachable(message)


def unusable(server: str, what: str) -> NotKubernetes:
    """Return the error for an answer that no API server gives."""
    return NotKubernetes(
        f"{server} does not answer as a Kubernetes API server ({what}). Check the `server` of "
        "the kubeconfig, and any login proxy in front of it."
    )


def excerpt(text: str) -> str:
    """Return text of the other side on one line, without control characters, at most 400 long."""
    text = " ".join(plain(text).split()) or "no body"
    return text if len(text) <= _LONGEST_EXCERPT else text[:_LONGEST_EXCERPT] + "…"


def _error_without_status(
    code: int, text: str, server: str, request: ApiRequest
) -> KubernetesError:
    if code == HTTPStatus.NOT_FOUND and text.strip() == _NO_SUCH_PATH:
        if RAY_API in request.path:
            return KubeRayMissing(
                f"{server} does not know RayClusters (ray.io/v1). Install the KubeRay operator "
                "with its custom resource definitions, 1.5.1 or later."
            )
        return unusable(server, f"it does not serve /{request.path}")
    if code == HTTPStatus.UNAUTHORIZED:
        return _unauthorized(server, excerpt(text))
    # A load balancer of a control plane that is being upgraded answers in its own words.
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR or code == HTTPStatus.TOO_MANY_REQUESTS:
        return no_answer(f"{server} answered HTTP {code}: {excerpt(text)}", request)
    return unusable(server, f"HTTP {code}: {excerpt(text)}")


def _unauthorized(server: str, said: str) -> KubernetesUnauthorized:
    return KubernetesUnauthorized(
        f"{server} does not accept the worker's credentials (HTTP 401: {said}). Renew the token "
        "or certificate of the kubeconfig, or use the service account of the worker's pod."
    )


def _meaning_of_403(status: _ApiStatus, said: str, request: ApiRequest) -> KubernetesError:
    if "exceeded quota" in status.message:
        return QuotaExceeded(said)
    if any(cause.reason == "NamespaceTerminating" for cause in status.causes):
        return NamespaceTerminating(f"Namespace {request.namespace!r} is being deleted: {said}")
    if "admission webhook" in status.message:
        return ManifestRefused(f"An admission webhook rejected the {request.what}: {said}")
    where = f" in namespace {request.namespace!r}" if request.namespace else ""
    group = request.resource.partition(".")[2] or '""'
    return KubernetesForbidden(
        f"The worker must not {request.verb} {request.resource or '/' + request.path}{where}. "
        f"Add a rule to its Role: apiGroups [{group}], resources "
        f"[{request.resource.partition('.')[0]}], verbs [{request.verb}]. Kubernetes says: {said}",
        verb=request.verb,
        resource=request.resource,
        namespace=request.namespace,
    )


def _meaning_of_409(status: _ApiStatus, said: str, request: ApiRequest) -> KubernetesError:
    if status.reason == "AlreadyExists":
        return AlreadyThere(f"Kubernetes already has {request.what}: {said}")
    if request.verb == "create":
        # The quota controller's object changed meanwhile; nothing was created.
        return KubernetesUnreachable(f"Kubernetes asks to create {request.what} again: {said}")
    if "UID in precondition" in status.message:
        return ObjectReplaced(f"Another {request.what} has this name now: {said}")
    return Conflict(f"{request.what} has changed since it was read: {said}")


def _rejected(status: _ApiStatus, said: str, request: ApiRequest) -> KubernetesError:
    fields = [cause.field for cause in status.causes if cause.field]
    if "metadata.uid" in fields and request.verb == "patch":
        return ObjectReplaced(f"Another {request.what} has this name now: {said}")
    if request.verb not in ("create", "patch"):
        return KubernetesRejected(f"Kubernetes rejected the request for {request.what}: {said}")
    found = _UNKNOWN_FIELD.search(status.message)
    field = found[1] if found else (fields[0] if fields else "")
    return ManifestRefused(
        f"Kubernetes rejected the manifest of {request.what}"
        f"{f', field {field}' if field else ''}: {said}",
        field=field,
    )


def _status_in(body: bytes) -> _ApiStatus | None:
    try:
        status = _ApiStatus.model_validate_json(body)
    except ValidationError:
        return None
    return status if (status.kind, status.api_version) == ("Status", "v1") else None


def _without_values(text: str) -> str:
    return excerpt(_INVALID_VALUE.sub(r"\1 ", text)) if text else ""
