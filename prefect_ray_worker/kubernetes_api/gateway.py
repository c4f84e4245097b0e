"""`KubernetesGateway`: the API server's credentials for requests to Ray through its service proxy.

The API server takes `Authorization` for itself and does not pass it on (observed on 1.36). Ray's
token therefore goes in `X-Ray-Authorization`, which `ray_api.tokens` does by itself.
"""

import ssl
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus

import anyio

from prefect_ray_worker.errors import KubernetesUnauthorized
from prefect_ray_worker.kubernetes_api.credentials import Access

# With the command of an exec plugin.
_SECONDS = 30


class KubernetesGateway:
    """Adds fresh credentials of Kubernetes to each request; implements `ray_api`'s `Gateway`.

    Two are equal only if they are the same object: keep the one of the client, so that
    connections to one cluster are equal and share sockets.

    Args:
        access: The way to the API server.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._authentication = access.authentication()
        self._headers: Mapping[str, str] | None = None
        self._lock = anyio.Lock()

    @property
    def tls(self) -> ssl.SSLContext:
        """TLS settings for the API server. Reads files: run it in a thread."""
        return self._access.tls()

    async def headers(self, refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        """Return the headers for the next request.

        Args:
            refused: Headers that the API server answered with 401. They are renewed, once for all
                requests that were refused with them.

        Raises:
            KubernetesUnauthorized: The credentials cannot be read.
        """
        async with self._lock:
            if self._headers is None or (refused is not None and self._headers == refused):
                self._headers = await self._fresh(renew=refused is not None)
            return self._headers

    async def _fresh(self, *, renew: bool) -> Mapping[str, str]:
        if self._authentication is None:
            return {}
        # Imported here: a worker without KubeRay has no httpx2.
        import httpx2

        # Drive lightkube's own flow with a request that is never sent: it decides where the
        # credentials come from, and what a 401 means for them.
        flow = self._authentication.async_auth_flow(httpx2.Request("GET", self._access.server))
        try:
            with anyio.fail_after(_SECONDS):
                request = await anext(flow)
                if renew:
                    refusal = httpx2.Response(HTTPStatus.UNAUTHORIZED, request=request)
                    # A fixed token has no other.
                    with suppress(StopAsyncIteration):
                        request = await flow.asend(refusal)
        except Exception as exc:  # noqa: BLE001 (a plugin or token file can fail in any way)
            raise KubernetesUnauthorized(
                f"The credentials for Kubernetes at {self._access.server} cannot be read "
                f"({type(exc).__name__})."
            ) from None
        finally:
            await flow.aclose()
        value = request.headers.get("Authorization")
        return {} if value is None else {"Authorization": value}
