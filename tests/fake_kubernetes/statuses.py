"""The API server's own words: a JSON `Status` for each refusal, as Kubernetes 1.36 writes them.

`tests/contract/test_kubernetes_contract.py` holds them to a real API server, if one is given.
"""

from typing import Any

GROUPS = {
    "rayclusters": "ray.io",
    "selfsubjectaccessreviews": "authorization.k8s.io",
    "events.events": "events.k8s.io",
}
KINDS = {
    "rayclusters": "RayCluster",
    "pods": "Pod",
    "events": "Event",
    "secrets": "Secret",
    "services": "Service",
    "resourcequotas": "ResourceQuota",
    "namespaces": "Namespace",
}


class Refusal(Exception):
    """A request that the API server refuses.

    Attributes:
        status: The HTTP status.
        body: The JSON `Status`.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = code
        self.body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }
        if details is not None:
            self.body["details"] = details


def qualified(resource: str) -> str:
    """Return a resource with its group, as Kubernetes writes it."""
    group = GROUPS.get(resource)
    return f"{resource}.{group}" if group else resource


def not_found(resource: str, name: str) -> Refusal:
    return Refusal(
        404, "NotFound", f'{qualified(resource)} "{name}" not found', details=_of(resource, name)
    )


def already_exists(resource: str, name: str, *, terminating: bool) -> Refusal:
    lead = "object is being deleted: " if terminating else ""
    return Refusal(
        409,
        "AlreadyExists",
        f'{lead}{qualified(resource)} "{name}" already exists',
        details=_of(resource, name),
    )


def conflict(resource: str, name: str, why: str | None = None) -> Refusal:
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try "
        "again"
    )
    return Refusal(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {qualified(resource)} "{name}": {why}',
        details=_of(resource, name),
    )


def invalid(resource: str, name: str, causes: list[tuple[str, str, str]]) -> Refusal:
    """Return a 422; each cause is a field, a reason and a message."""
    kind = f"{KINDS[resource]}.{GROUPS[resource]}" if resource in GROUPS else KINDS[resource]
    said = [f"{field}: {message}" for field, _, message in causes]
    text = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    details = {
        **_of(resource, name),
        "kind": KINDS[resource],
        "causes": [{"field": f, "reason": r, "message": m} for f, r, m in causes],
    }
    return Refusal(422, "Invalid", f'{kind} "{name}" is invalid: {text}', details=details)


def strict(resource: str, unknown: list[str]) -> Refusal:
    kind = KINDS[resource]
    fields = ", ".join(f'unknown field "{field}"' for field in unknown)
    return Refusal(
        400,
        "BadRequest",
        f'{kind} in version "v1" cannot be handled as a {kind}: strict decoding error: {fields}',
    )


def forbidden(user: str, verb: str, resource: str, namespace: str, name: str = "") -> Refusal:
    plain, _, _ = resource.partition("/")
    group = GROUPS.get(plain, "")
    lead = f'{qualified(plain)} "{name}"' if name else qualified(plain)
    return Refusal(
        403,
        "Forbidden",
        f'{lead} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group '
        f'"{group}" in the namespace "{namespace}"',
        details=_of(plain, name),
    )


def exceeded_quota(resource: str, name: str, quota: str, used: int, hard: int) -> Refusal:
    key = f"count/{qualified(resource)}"
    return Refusal(
        403,
        "Forbidden",
        f'{qualified(resource)} "{name}" is forbidden: exceeded quota: {quota}, requested: '
        f"{key}=1, used: {key}={used}, limited: {key}={hard}",
        details=_of(resource, name),
    )


def namespace_terminating(resource: str, name: str, namespace: str) -> Refusal:
    cause = {
        "reason": "NamespaceTerminating",
        "message": f"namespace {namespace} is being terminated",
        "field": "metadata.namespace",
    }
    return Refusal(
        403,
        "Forbidden",
        f'{qualified(resource)} "{name}" is forbidden: unable to create new content in namespace '
        f"{namespace} because it is being terminated",
        details={**_of(resource, name), "causes": [cause]},
    )


def unauthorized() -> Refusal:
    return Refusal(401, "Unauthorized", "Unauthorized")


def unavailable(message: str) -> Refusal:
    return Refusal(503, "ServiceUnavailable", message)


def bad_request(message: str) -> Refusal:
    return Refusal(400, "BadRequest", message)


def _of(resource: str, name: str) -> dict[str, Any]:
    details: dict[str, Any] = {"kind": resource}
    if name:
        details["name"] = name
    if resource in GROUPS:
        details["group"] = GROUPS[resource]
    return details
