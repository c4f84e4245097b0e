"""`ApiServer`: sends requests to one API server, with a limit on time and on each answer's size."""

import json
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel, Field, ValidationError

from prefect_ray_worker.errors import (
    CredentialsUnreadable,
    KubernetesError,
    KubernetesTlsFailed,
    KubernetesUnauthorized,
    KubernetesUnreachable,
)
from prefect_ray_worker.kubernetes_api.answers import (
    error_from_answer,
    excerpt,
    no_answer,
    unusable,
)
from prefect_ray_worker.kubernetes_api.credentials import Access, Kubeconfig, load_access
from prefect_ray_worker.kubernetes_api.request import ApiRequest, Texts
from prefect_ray_worker.shared.tls import failed_handshake

if TYPE_CHECKING:
    import httpx2

_ANSWER_SECONDS = 20
_CONNECT_SECONDS = 5
# For a whole request: with the command of an exec plugin, and with a list that trickles in.
_REQUEST_SECONDS = 60
_MOST_CONNECTIONS = 8
_MOST_OF_AN_ERROR = 256 * 1024
_CHUNK = 256 * 1024
_PAGE = "500"
_MOST_PAGES = 40
# Longer answers are parsed in a thread, so that the event loop gets its turn.
_LONG = 256 * 1024

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class _ListMeta(BaseModel):
    more: str = Field(default="", alias="continue")


class _List(BaseModel):
    items: list[Any] | None
    metadata: _ListMeta = Field(default_factory=_ListMeta)


class ApiServer:
    """Sends requests to one API server through lightkube's credentials.

    Limits: 5 s to connect, 20 s for each piece of an answer, 60 s for the whole, 8 connections.

    Args:
        kubeconfig: See `load_access`.
    """

    def __init__(self, kubeconfig: Kubeconfig | None) -> None:
        self._kubeconfig = kubeconfig
        self._access: Access | None = None
        self._http: httpx2.AsyncClient | None = None
        self._has_worked = False

    async def __aenter__(self) -> Self:
        self._access = await anyio.to_thread.run_sync(load_access, self._kubeconfig)
        tls = await anyio.to_thread.run_sync(self._access.tls)
        # Imported here: a worker without KubeRay has no httpx2.
        import httpx2

        try:
            self._http = httpx2.AsyncClient(
                base_url=self._access.server,
                auth=self._access.authentication(),
                verify=tls,
                timeout=httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
                limits=httpx2.Limits(max_connections=_MOST_CONNECTIONS),
                follow_redirects=False,
                trust_env=not self._access.is_loopback,
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            )
        except Exception as exc:  # noqa: BLE001 (lightkube's refusal of a kind of credentials)
            raise _unreadable(self._access.server, exc) from None
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._http is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_CONNECT_SECONDS):
                await self._http.aclose()
        self._http = None

    @property
    def access(self) -> Access:
        """The way to the API server; known once this is open."""
        if self._access is None:
            raise RuntimeError("Use KubernetesClient as an async context manager.")
        return self._access

    async def ask(self, request: ApiRequest) -> bytes:
        """Send a request and return the body of the answer.

        Raises:
            KubernetesError: A subclass that says what the answer means.
        """
        import httpx2

        server = self.access.server
        try:
            with anyio.fail_after(_REQUEST_SECONDS):
                return await self._answer(request)
        except TimeoutError:
            raise no_answer(
                f"No answer from Kubernetes at {server} within {_REQUEST_SECONDS} s.", request
            ) from None
        except httpx2.HTTPError as exc:
            raise _error_from_transport(exc, server, request) from exc
        except (KubernetesError, RuntimeError):
            raise
        except Exception as exc:  # noqa: BLE001 (a plugin or token file can fail in any way)
            # `from None`: the cause can quote what a plugin printed.
            if not self._has_worked:
                raise _unreadable(server, exc) from None
            raise CredentialsUnreadable(
                f"The credentials for Kubernetes at {server} cannot be read now "
                f"({_cause_of(exc)}). Check the exec plugin or token file of the kubeconfig on the "
                "worker's machine."
            ) from None

    async def read(self, request: ApiRequest, model: type[M]) -> M:
        """Send a request and return its answer as a model."""
        return await self._parsed(await self.ask(request), model.model_validate_json)

    async def list(
        self, request: ApiRequest, model: type[M], *, selector: str = "", cached: bool = False
    ) -> list[M]:
        """Return all objects of a list, page by page; with `cached`, from the server's cache.

        Args:
            request: Without the parameters of a list.
            model: Of one object.
            selector: The labels that an object must have.
            cached: See `KubernetesClient.list_clusters`.
        """
        wanted = dict(request.parameters)
        if selector:
            wanted["labelSelector"] = selector
        # The cache ignores the limit, and answers with all.
        wanted.update({"resourceVersion": "0"} if cached else {"limit": _PAGE})
        found: list[M] = []
        for _ in range(_MOST_PAGES):
            body = await self.ask(replace(request, parameters=tuple(wanted.items())))
            page, more = await self._parsed(body, lambda body: _page_of(body, model))
            found += page
            if not more:
                return found
            wanted["continue"] = more
        raise KubernetesUnreachable(f"The list of {request.what} does not end.")

    async def _parsed(self, body: bytes, parser: Callable[[bytes], T]) -> T:
        try:
            if len(body) < _LONG:
                return parser(body)
            return await anyio.to_thread.run_sync(parser, body)
        except ValidationError:
            # `from None`: the cause quotes the answer, which can be a Secret.
            raise unusable(self.access.server, "an unexpected answer") from None

    async def _answer(self, request: ApiRequest) -> bytes:
        if self._http is None:
            raise RuntimeError("Use KubernetesClient as an async context manager.")
        body = None if request.body is None else json.dumps(request.body).encode()
        async with self._http.stream(
            request.method,
            request.path,
            params=dict(request.parameters),
            content=body,
            headers={"Content-Type": request.content_type} if body is not None else None,
        ) as response:
            room = request.room if response.is_success else _MOST_OF_AN_ERROR
            kept = bytearray()
            async for chunk in response.aiter_raw(_CHUNK):
                kept += chunk
                if len(kept) > room:
                    break
            code, server = response.status_code, self.access.server
            self._has_worked |= code != HTTPStatus.UNAUTHORIZED
            if not response.is_success:
                raise error_from_answer(code, bytes(kept[:room]), server=server, request=request)
            if len(kept) > room:
                raise unusable(server, f"more than {room >> 10} KiB about {request.what}")
            return bytes(kept)


def _error_from_transport(
    exc: "httpx2.HTTPError", server: str, request: ApiRequest
) -> KubernetesError:
    import httpx2

    if isinstance(exc, httpx2.LocalProtocolError):
        return KubernetesUnauthorized(
            f"The token for Kubernetes at {server} has a character that HTTP does not allow."
        )
    reason = f"{type(exc).__name__}: {excerpt(str(exc))}" if str(exc) else type(exc).__name__
    if isinstance(exc, httpx2.UnsupportedProtocol):
        return unusable(server, reason)
    if isinstance(exc, httpx2.ConnectError) and failed_handshake(exc):
        return KubernetesTlsFailed(
            f"TLS with Kubernetes at {server} failed ({reason}). Check "
            "`certificate-authority-data` of the kubeconfig, and the scheme of its `server`."
        )
    never_sent = isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
    return no_answer(
        f"No answer from Kubernetes at {server} ({reason}).", request, sent=not never_sent
    )


def _unreadable(server: str, exc: Exception) -> KubernetesUnauthorized:
    return KubernetesUnauthorized(
        f"The credentials for Kubernetes at {server} cannot be read ({_cause_of(exc)}). Check "
        "the exec plugin, token file or token of the kubeconfig on the worker's machine."
    )


def _cause_of(exc: Exception) -> str:
    # The part before the first colon names the plugin or file; what follows is a plugin's output.
    known = type(exc).__name__ == "ConfigError"
    return excerpt(str(exc).partition(":")[0] if known else type(exc).__name__)


def _page_of(body: bytes, model: type[M]) -> tuple[list[M], str]:
    page = _List.model_validate_json(body)
    return [model.model_validate(item) for item in page.items or []], page.metadata.more


def selector_of(labels: Texts | None) -> str:
    """Return the selector of objects that have all these labels with these values."""
    return ",".join(f"{name}={value}" for name, value in (labels or {}).items())
