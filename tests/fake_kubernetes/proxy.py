"""The service proxy of the fake API server: from a service to the head that stands behind it."""

import io
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

from tests.fake_kubernetes import statuses
from tests.fake_kubernetes.store import Store

# The API server takes them for itself, or HTTP does not pass them on.
_KEPT_HERE = {"authorization", "host", "content-length", "transfer-encoding", "connection"}
_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "DELETE": "delete"}


def verb_of(method: str) -> str:
    """Return the verb of the resource `services/proxy` that a method needs."""
    return _VERBS.get(method, "patch")


class ServiceProxy:
    """Passes requests on to the pod behind a service, without `Authorization`.

    Args:
        store: The services and pods.
        address_of: Returns where the container of a pod listens, by the pod's uid; None if
            nothing listens.
    """

    def __init__(self, store: Store, address_of: Callable[[str], str | None]) -> None:
        self._store = store
        self._address_of = address_of
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def handle(
        self, request: web.Request, namespace: str, target: str, tail: str | None
    ) -> web.StreamResponse:
        """Answer a request to `…/services/<name>[:<port>]/proxy[/<tail>]`."""
        if tail is None:
            # Observed: the bare path answers with a redirect to the one with a slash.
            return web.Response(status=301, headers={"Location": f"{request.path}/"})
        address = self._behind(namespace, *target.partition(":")[::2])
        body = await request.read()
        query = f"?{request.query_string}" if request.query_string else ""
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _KEPT_HERE}
        try:
            async with self._session.request(
                request.method,
                f"{address}/{tail}{query}",
                headers=headers,
                data=io.BytesIO(body) if body else None,
                allow_redirects=False,
            ) as answer:
                return await _passed_on(answer)
        except aiohttp.ClientConnectorError as exc:
            raise statuses.unavailable(
                f"error trying to reach service: dial tcp: {exc.strerror}"
            ) from exc
        except aiohttp.ClientError as exc:
            raise statuses.unavailable(f"error trying to reach service: {exc}") from exc

    def _behind(self, namespace: str, name: str, port: str) -> str:
        service = self._store.get("services", namespace, name)
        ports = service["spec"].get("ports", [])
        if port and port not in {str(p[key]) for p in ports for key in ("name", "port")}:
            raise statuses.unavailable(f'no service port "{port}" found for service "{name}"')
        selector = service["spec"].get("selector", {})
        for pod in self._store.all("pods", namespace):
            labels = pod["metadata"].get("labels", {})
            if all(labels.get(k) == v for k, v in selector.items()) and _is_published(pod, service):
                return self._address_of(pod["metadata"]["uid"]) or "http://127.0.0.1:1"
        raise statuses.unavailable(f'no endpoints available for service "{name}"')


def _is_published(pod: dict[str, Any], service: dict[str, Any]) -> bool:
    status = pod.get("status", {})
    if "podIP" not in status or "deletionTimestamp" in pod["metadata"]:
        return False
    if status.get("phase") in ("Failed", "Succeeded"):
        return False
    if service["spec"].get("publishNotReadyAddresses"):
        return True
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))


async def _passed_on(answer: aiohttp.ClientResponse) -> web.Response:
    # As a whole, so that a fault can strike after Ray has acted and before the client knows.
    kept = {k: v for k, v in answer.headers.items() if k.lower() not in _KEPT_HERE}
    return web.Response(status=answer.status, headers=kept, body=await answer.read())
