"""Opens the HTTP client for a connection, in the same way for every endpoint of a cluster."""

import hashlib
import os
import ssl
from pathlib import Path

import anyio.to_thread
import certifi
import httpx

from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.ray_api.answers import error_from_illegal_header
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import BearerAuth


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
