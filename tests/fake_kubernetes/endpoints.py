"""The endpoints of the fake API server: paths to verbs, rights, objects."""

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fake_kubernetes import discovery, proxy, schema, statuses
from tests.fake_kubernetes.rights import User
from tests.fake_kubernetes.store import Document, Preconditions

if TYPE_CHECKING:
    from tests.fake_kubernetes.server import FakeKubernetes

_OBJECT = re.compile(
    r"/(?:api/v1|apis/(?P<group>[a-z0-9.]+)/v1)/namespaces/(?P<namespace>[^/]+)"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<part>[a-z]+)(?P<tail>/.*)?)?)?"
)
_CORE = {"pods", "events", "secrets", "services", "resourcequotas"}
_VERBS = {"POST": "create", "GET": "get", "PATCH": "patch", "DELETE": "delete"}
_LIST_KINDS = {"rayclusters": ("ray.io/v1", "RayClusterList")}


class Endpoints:
    """Answers requests to the API server.

    Args:
        fake: Whose objects and users.
        checker: Checks RayClusters.
        service_proxy: Passes requests on to Ray.
    """

    def __init__(
        self, fake: "FakeKubernetes", checker: schema.Checker, service_proxy: proxy.ServiceProxy
    ) -> None:
        self._fake = fake
        self._store = fake.store
        self._checker = checker
        self._proxy = service_proxy

    async def handle(self, request: web.Request) -> web.StreamResponse:
        user = self._user(request)
        general = self._general(request)
        if general is not None:
            return general
        if request.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return web.json_response(_reviewed(user, await request.json()), status=201)
        match = _OBJECT.fullmatch(request.path)
        if match is None or not self._is_served(match["group"], match["resource"]):
            return web.Response(status=404, text="404 page not found\n")
        resource, namespace = match["resource"], match["namespace"]
        name, part = match["name"] or "", match["part"] or ""
        self._check_right(request, user, resource, namespace, name, part)
        if (resource, part) == ("services", "proxy"):
            tail = match["tail"]
            return await self._proxy.handle(request, namespace, name, tail and tail[1:])
        if (resource, part) == ("pods", "log"):
            return self._log(request, namespace, name)
        return await self._object(request, resource, namespace, name, part)

    def _user(self, request: web.Request) -> User:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self._fake.users.get(token)
        if user is None:
            raise statuses.unauthorized()
        return user

    def _general(self, request: web.Request) -> web.Response | None:
        """Answer what needs no right beyond being known."""
        has_kuberay = self._fake.has_kuberay
        if request.path == "/openapi/v3/apis/ray.io/v1" and has_kuberay:
            openapi = schema.openapi(self._checker.schema)
            return web.Response(text=openapi, content_type="application/json")
        found = discovery.answer(request.path, has_kuberay=has_kuberay)
        return None if found is None else web.json_response(found)

    def _is_served(self, group: str | None, resource: str) -> bool:
        if group is None:
            return resource in _CORE
        return (group, resource) == ("ray.io", "rayclusters") and self._fake.has_kuberay

    def _check_right(
        self,
        request: web.Request,
        user: User,
        resource: str,
        namespace: str,
        name: str,
        part: str,
    ) -> None:
        if part == "proxy":
            verb = proxy.verb_of(request.method)
        else:
            verb = _VERBS[request.method]
            verb = "list" if verb == "get" and not name else verb
        asked = f"{resource}/{part}" if part else resource
        group = statuses.GROUPS.get(resource, "")
        user.used.add((verb, group, asked))
        if not user.may(verb, group, asked, namespace, name):
            raise statuses.forbidden(user.name, verb, asked, namespace, name)

    async def _object(
        self, request: web.Request, resource: str, namespace: str, name: str, part: str
    ) -> web.Response:
        dry_run = request.query.get("dryRun") == "All"
        match request.method:
            case "POST":
                document = self._checked(request, resource, await request.json())
                created = self._store.create(resource, namespace, document, dry_run=dry_run)
                return web.json_response(created, status=201)
            case "GET" if name:
                return web.json_response(self._store.get(resource, namespace, name))
            case "GET":
                return web.json_response(self._listed(request, resource, namespace))
            case "PATCH":
                return web.json_response(
                    self._store.patch(
                        resource,
                        namespace,
                        name,
                        await _merge_patch(request),
                        part=part,
                        check=lambda after: self._checked(request, resource, after),
                    )
                )
            case _:
                return await self._delete(request, resource, namespace, name)

    async def _delete(
        self, request: web.Request, resource: str, namespace: str, name: str
    ) -> web.Response:
        text = await request.text()
        options = json.loads(text) if text else {}
        wanted = options.get("preconditions", {})
        default = request.query.get("propagationPolicy", "Background")
        left = self._store.delete(
            resource,
            namespace,
            name,
            policy=options.get("propagationPolicy", default),
            preconditions=Preconditions(wanted.get("uid"), wanted.get("resourceVersion")),
            grace=resource == "pods",
        )
        if left is not None:
            return web.json_response(left)
        body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return web.json_response(body)

    def _checked(self, request: web.Request, resource: str, document: Document) -> Document:
        if resource != "rayclusters":
            return document
        is_strict = request.query.get("fieldValidation") == "Strict"
        return self._checker.checked(document, is_strict=is_strict)

    def _listed(self, request: web.Request, resource: str, namespace: str) -> Document:
        found = [
            document
            for document in self._store.all(resource, namespace)
            if _has_labels(document, request.query.get("labelSelector", ""))
            and _has_fields(document, request.query.get("fieldSelector", ""))
        ]
        metadata: Document = {"resourceVersion": self._store.version}
        # From the cache the limit is ignored.
        limit = int(request.query.get("limit", 0)) if "resourceVersion" not in request.query else 0
        if limit:
            start = int(base64.b64decode(request.query.get("continue", "")) or 0)
            if start + limit < len(found):
                metadata["continue"] = base64.b64encode(str(start + limit).encode()).decode()
            found = found[start : start + limit]
        version, kind = _LIST_KINDS.get(resource, ("v1", f"{statuses.KINDS[resource]}List"))
        return {"apiVersion": version, "kind": kind, "metadata": metadata, "items": found}

    def _log(self, request: web.Request, namespace: str, name: str) -> web.Response:
        pod = self._store.get("pods", namespace, name)
        previous = request.query.get("previous") == "true"
        container = request.query.get("container") or "ray-head"
        text = self._fake.kubelet.log_of(pod, previous=previous)
        if text is None:
            why = (
                f'previous terminated container "{container}" in pod "{name}" not found'
                if previous
                else f'container "{container}" in pod "{name}" is waiting to start: '
                "ContainerCreating"
            )
            raise statuses.bad_request(why)
        lines = text.splitlines(keepends=True)
        return web.Response(text="".join(lines[-int(request.query.get("tailLines", len(lines))) :]))


def _reviewed(user: User, review: Document) -> Document:
    asked = review["spec"]["resourceAttributes"]
    part = asked.get("subresource")
    resource = f"{asked['resource']}/{part}" if part else asked["resource"]
    allowed = user.may(
        asked["verb"],
        asked.get("group", ""),
        resource,
        asked.get("namespace", ""),
        asked.get("name", ""),
    )
    return {**review, "status": {"allowed": allowed, "reason": ""}}


async def _merge_patch(request: web.Request) -> Any:
    if request.content_type != "application/merge-patch+json":
        raise statuses.Refusal(415, "UnsupportedMediaType", f"{request.content_type} is not taken")
    return await request.json()


def _has_labels(document: Document, selector: str) -> bool:
    labels = document["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if (labels.get(key) != value) if equals else (key not in labels):
            return False
    return True


def _has_fields(document: Document, selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        path, _, value = term.partition("=")
        found: Any = document
        for part in path.split("."):
            found = found.get(part, {})
        if found != value:
            return False
    return True
