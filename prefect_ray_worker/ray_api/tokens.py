"""Reads a Ray cluster's bearer token and adds it to requests.

The environment's token is looked up in the same order as in Ray 2.60: `RAY_AUTH_TOKEN`, the file
`RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`. If `RAY_AUTH_MODE` is set to anything but `token`, the
environment's token is not used. If it is unset, any token found is used.
"""

import os
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import anyio.to_thread
import httpx

from prefect_ray_worker.errors import ClusterUnreachable, RayWorkerError
from prefect_ray_worker.ray_api.gateway import Gateway, is_from_api_server


@dataclass(frozen=True)
class TokenSource:
    """A literal token, a file that holds one, the environment's token, or no token at all.

    Attributes:
        literal: The token itself.
        path: A file with the token. It is read again after a 401 or 403, because Kubernetes
            renews service account tokens in place.
        environment: Whether to use the token of this process's environment (see the module). It
            must never go to an address that neither the worker nor its pool is configured for.
    """

    literal: str | None = field(default=None, repr=False)
    path: str | None = None
    environment: bool = False

    def read(self) -> str | None:
        """Return the current token, or None if there is none.

        Blocks if it reads a file. A file that cannot be read, or is not UTF-8, counts as no token,
        because the cluster's 401 is more helpful than an `OSError`.
        """
        if self.literal is not None:
            return self.literal.strip()
        if self.path is not None:
            return _read_file(Path(self.path))
        return _token_of_environment() if self.environment else None


class BearerAuth(httpx.Auth):
    """Adds `Authorization: Bearer`, and reads the token again after a 401 or 403.

    Args:
        source: Where the token comes from.
        gateway: What stands before the dashboard and needs credentials of its own.
    """

    def __init__(self, source: TokenSource, gateway: Gateway | None = None) -> None:
        self._source = source
        self._gateway = gateway
        self._token: str | None = None
        self._loaded = False

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request with the token. Retry once if the token was refused and has changed."""
        if not self._loaded:
            await self._load()
        shown = await self._gateway_headers()
        request.headers.update(shown)
        # A proxy in front of Ray can need `Authorization` for itself. Ray reads both headers.
        header = "X-Ray-Authorization" if "authorization" in request.headers else "Authorization"
        sent = self._token
        if sent is not None:
            request.headers[header] = f"Bearer {sent}"
        response = yield request
        if (
            self._gateway is not None
            and response.status_code == HTTPStatus.UNAUTHORIZED
            and is_from_api_server(response)
        ):
            fresh = await self._gateway_headers(refused=shown)
            if fresh != shown:
                request.headers.update(fresh)
                yield request
            return
        # Ray answers 403 to a wrong or expired token, and 401 only to a missing one.
        if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            await self._load()
            # Compare with the token that this request sent: another request may have reloaded it.
            if self._token is not None and self._token != sent:
                request.headers[header] = f"Bearer {self._token}"
                yield request

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Raise an error: this package has no synchronous client."""
        raise RuntimeError("BearerAuth is for httpx.AsyncClient.")

    async def _gateway_headers(self, refused: Mapping[str, str] | None = None) -> Mapping[str, str]:
        if self._gateway is None:
            return {}
        try:
            return await self._gateway.headers(refused)
        except RayWorkerError as exc:
            raise ClusterUnreachable(str(exc)) from exc

    async def _load(self) -> None:
        self._token = await anyio.to_thread.run_sync(self._source.read)
        self._loaded = True


def _token_of_environment() -> str | None:
    # Same as `authentication_token_setup.maybe_enable_token_auth_if_token_available` (Ray 2.60).
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip() or None
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read_file(Path(path))
    return _read_file(Path.home() / ".ray" / "auth_token")


def _read_file(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):  # ValueError: not UTF-8, or no path at all
        return None
