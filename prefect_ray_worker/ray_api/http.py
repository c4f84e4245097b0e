"""Opens the HTTP client for a connection, in the same way for every endpoint of a cluster."""

import functools
import ssl

import anyio.to_thread
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
    elif connection.verify and connection.ca_file is not None:
        verify = await anyio.to_thread.run_sync(_load_authorities, connection.ca_file)
    elif connection.verify:
        # To read the authorities of the world takes 20 ms, and each client would do it.
        is_plain = connection.address.startswith("http://")
        make = _shared_context if is_plain else httpx.create_ssl_context
        verify = await anyio.to_thread.run_sync(make)
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


class _OffLimits(httpx.AsyncBaseTransport):
    """Fails every request without sending anything."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(
            "nothing is sent to an address that neither the run, its pool nor the worker names",
            request=request,
        )


@functools.cache
def _shared_context() -> ssl.SSLContext:
    """Return what httpx makes for every client, and only a proxy with https would use here."""
    return httpx.create_ssl_context()


def _load_authorities(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # includes ssl.SSLError
        raise InvalidConfiguration(
            f"ca_file {ca_file!r} of the `cluster` block cannot be used ({exc}). Name a PEM file "
            "on the worker's machine."
        ) from exc
