"""`ApiRequest`: one request to the API server, with the words for the access rule that it needs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_ray_worker.errors import InvalidConfiguration

RAY_API = "apis/ray.io/v1"
CLUSTERS = "rayclusters.ray.io"
MERGE_PATCH = "application/merge-patch+json"

Texts = Mapping[str, str]
Verb = Literal["create", "get", "list", "patch", "delete"]

_METHODS: dict[Verb, str] = {
    "create": "POST",
    "get": "GET",
    "list": "GET",
    "patch": "PATCH",
    "delete": "DELETE",
}
# What Kubernetes allows in the names of objects (RFC 1123); with it, no name changes a path.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class ApiRequest:
    """A request to the API server.

    Attributes:
        verb: In the words of role-based access control.
        path: Relative to the server's address, without a leading slash.
        resource: With its API group, as in a Role: `rayclusters.ray.io`, `pods/log`.
        namespace: Empty for what has none.
        name: Of the object; empty for a list.
        body: A JSON object.
        parameters: The query.
        content_type: Of the body.
        room: The most bytes of an answer that are read.
        stores: Whether a success leaves something on the server, if the verb does at all.
    """

    verb: Verb
    path: str
    resource: str = ""
    namespace: str = ""
    name: str = ""
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    parameters: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"
    room: int = 32 * 1024 * 1024
    stores: bool = True

    @property
    def method(self) -> str:
        """The HTTP method."""
        return _METHODS[self.verb]

    @property
    def changes(self) -> bool:
        """Whether a lost answer leaves open what the server has done."""
        return self.stores and self.verb in ("create", "patch", "delete")

    @property
    def what(self) -> str:
        """The object or list that the request is about, for a message."""
        thing = self.resource or f"/{self.path}"
        named = f"{thing} {self.name!r}" if self.name else thing
        return f"{named} in namespace {self.namespace!r}" if self.namespace else named


def segment(value: str, *, what: str) -> str:
    """Return a name as a part of a path.

    Args:
        value: The name.
        what: What it names, for the message.

    Raises:
        InvalidConfiguration: Kubernetes has no such names.
    """
    if not _NAME.fullmatch(value):
        raise InvalidConfiguration(
            f"{value!r} is not a name of a {what} in Kubernetes: use lower-case letters, digits, "
            "'-' and '.'."
        )
    return value


def cluster_request(
    verb: Verb,
    namespace: str,
    name: str = "",
    *,
    body: Mapping[str, Any] | None = None,
    parameters: tuple[tuple[str, str], ...] = (),
    stores: bool = True,
) -> ApiRequest:
    """Return a request about a RayCluster, or about the RayClusters of a namespace.

    Args:
        verb: What to do.
        namespace: Where.
        name: Of the cluster; not needed for a list.
        body: A JSON object.
        parameters: The query.
        stores: False for a dry run.
    """
    path = f"{RAY_API}/{namespace_path(namespace)}/rayclusters"
    if verb != "list":
        segment(name, what="RayCluster")
    if verb in ("get", "patch", "delete"):
        path = f"{path}/{name}"
    kind = MERGE_PATCH if verb == "patch" else "application/json"
    return ApiRequest(verb, path, CLUSTERS, namespace, name, body, parameters, kind, stores=stores)


def core_request(
    verb: Verb,
    namespace: str,
    resource: str,
    name: str = "",
    *,
    parameters: tuple[tuple[str, str], ...] = (),
) -> ApiRequest:
    """Return a request about an object of the core group, `resource` being as in a Role.

    Args:
        verb: What to do.
        namespace: Where.
        resource: Such as `pods`, or `pods/log`.
        name: Of the object; empty for a list.
        parameters: The query.
    """
    kind, _, part = resource.partition("/")
    path = f"api/v1/{namespace_path(namespace)}/{kind}"
    if name:
        path = f"{path}/{segment(name, what=kind.removesuffix('s'))}"
    if part:
        path = f"{path}/{part}"
    return ApiRequest(verb, path, resource, namespace, name, parameters=parameters)


def namespace_path(namespace: str) -> str:
    """Return the part of a path that names a namespace."""
    return f"namespaces/{segment(namespace, what='namespace')}"
