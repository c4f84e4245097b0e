"""Opens the HTTP client for a connection, in the same way for every endpoint of a cluster."""

import hashlib
import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import certifi
import httpx

from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.ray_api.answers import error_from_illegal_header
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import BearerAuth

_CLOSE_SECONDS = 5.0


async def open_http(
    connection: Connection, *, limits: httpx.Limits, timeouts: httpx.Timeout
) -> httpx.AsyncClient:
    """Return a client for a cluster's dashboard. The caller must close it.

    Args:
        connection: The address and credentials of the cluster.
        limits: Limits of the connection pool.
        timeouts: Default timeouts of a request.

    Raises:
        InvalidConfiguration: The CA file, or a certificate of the gateway, cannot be used.
        RequestRejected: A header cannot be encoded for HTTP.
    """
    verify: ssl.SSLContext | bool = connection.verify
    gateway = connection.gateway
    if gateway is not None:
        verify = await anyio.to_thread.run_sync(lambda: gateway.tls)
    elif connection.verify:
        verify = await anyio.to_thread.run_sync(_trusting, connection.ca_file)
    try:
        headers = httpx.Headers(dict(connection.headers))
    except UnicodeEncodeError:
        raise error_from_illegal_header(address=connection.address) from None
    return httpx.AsyncClient(
        base_url=connection.address,
        headers=headers,
        cookies=dict(connection.cookies),
        auth=BearerAuth(connection.token, gateway),
        verify=verify,
        timeout=timeouts,
        limits=limits,
        follow_redirects=False,
        trust_env=not connection.is_loopback,
        transport=_OffLimits() if connection.off_limits else None,
    )


class _Lent:
    """A client, and how many requests it has in hand."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.users = 0


class DashboardHttp:
    """The HTTP client of one dashboard, which can be replaced while it has requests in hand.

    Args:
        owner: The class whose context opens it, for the error message.
        limits: Limits of the connection pool.
        timeouts: Default timeouts of a request.
    """

    def __init__(self, owner: str, *, limits: httpx.Limits, timeouts: httpx.Timeout) -> None:
        self._owner = owner
        self._limits = limits
        self._timeouts = timeouts
        self._now: _Lent | None = None
        self._replaced: set[_Lent] = set()

    async def connect(self, connection: Connection) -> None:
        """Send further requests through a connection. See `open_http` for the errors."""
        http = await open_http(connection, limits=self._limits, timeouts=self._timeouts)
        before, self._now = self._now, _Lent(http)
        if before is not None:
            self._replaced.add(before)
            await self._close_if_done(before)

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[httpx.AsyncClient, None]:
        """Yield the present client, which stays open for as long as the context is.

        Raises:
            RuntimeError: It is not open.
        """
        lent = self._now
        if lent is None:
            raise RuntimeError(f"Use {self._owner} as an async context manager.")
        lent.users += 1
        try:
            yield lent.http
        finally:
            lent.users -= 1
            await self._close_if_done(lent)

    async def close(self) -> None:
        """Close every client, also those with requests in hand."""
        lent = [*self._replaced, *([] if self._now is None else [self._now])]
        self._replaced.clear()
        self._now = None
        for each in lent:
            await each.http.aclose()

    async def _close_if_done(self, lent: _Lent) -> None:
        if lent in self._replaced and not lent.users:
            self._replaced.discard(lent)
            with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_SECONDS):
                await lent.http.aclose()


# By the file's name: what was in it, and what came of it.
_contexts: dict[str, tuple[bytes, ssl.SSLContext]] = {}


class _OffLimits(httpx.AsyncBaseTransport):
    """Fails every request without sending anything."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(
            "nothing is sent to an address that neither the run, its pool nor the worker names",
            request=request,
        )


def _trusting(ca_file: str | None) -> ssl.SSLContext:
    """Return the TLS settings that all clients with the same authorities share.

    To read the authorities of the world takes 20 ms and half a megabyte, for each client of each
    cluster. A file is read again once it has changed: authorities are renewed.

    Args:
        ca_file: Whose authorities to trust; None for those that httpx trusts.
    """
    file = ca_file or os.environ.get("SSL_CERT_FILE")
    if not file and os.environ.get("SSL_CERT_DIR"):
        # OpenSSL looks into a directory as it needs to, so nothing is read here.
        return httpx.create_ssl_context()
    file = file or certifi.where()
    try:
        digest = hashlib.sha256(Path(file).read_bytes()).digest()
        known = _contexts.get(file)
        if known is None or known[0] != digest:
            known = _contexts[file] = (digest, ssl.create_default_context(cafile=file))
    except OSError as exc:  # includes ssl.SSLError
        if ca_file is None:
            raise
        raise InvalidConfiguration(
            f"ca_file {ca_file!r} of the `cluster` block cannot be used ({exc}). Name a PEM file "
            "on the worker's machine."
        ) from exc
    return known[1]
