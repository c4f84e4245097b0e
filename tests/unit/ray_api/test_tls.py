"""TLS to a real server, whose certificate nobody but its own authority vouches for."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from prefect_ray_worker.errors import (
    AmbiguousError,
    ClusterUnreachable,
    JobsApiError,
    NotRayDashboard,
)
from prefect_ray_worker.ray_api.answers import Effect
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient

LIST = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"


@asynccontextmanager
async def tls_server(authority: trustme.CA, answer: bytes = LIST) -> AsyncIterator[str]:
    """Answer every request with the same bytes; hang where there are none."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not answer:
            await over.wait()
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        server.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


async def ask(connection: Connection) -> int:
    async with JobsClient(connection) as client:
        return len(await client.list())


async def test_an_unknown_authority_is_refused_and_ca_file_named(authority: trustme.CA) -> None:
    async with tls_server(authority) as address:
        with pytest.raises(NotRayDashboard, match="ca_file"):
            await ask(Connection(address))


async def test_its_own_authority_vouches_for_it(authority: trustme.CA, ca_file: str) -> None:
    async with tls_server(authority) as address:
        assert await ask(Connection(address, ca_file=ca_file)) == 0


async def test_verification_can_be_skipped(authority: trustme.CA) -> None:
    async with tls_server(authority) as address:
        assert await ask(Connection(address, verify=False)) == 0


async def test_https_to_a_plain_server_hints_at_the_scheme() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(NotRayDashboard, match="check the scheme"):
            await ask(Connection(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))


async def test_a_connection_cut_during_the_handshake_is_unreachable() -> None:
    """A restarting ingress does that; it says nothing about authorities."""

    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.transport.abort()

    async with await asyncio.start_server(slam, "127.0.0.1", 0) as server:
        with pytest.raises(ClusterUnreachable):
            await ask(Connection(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))


@pytest.mark.parametrize(
    ("effect", "error"), [("safe", ClusterUnreachable), ("submits", AmbiguousError)]
)
async def test_a_timeout_over_tls_is_a_timeout(
    authority: trustme.CA, ca_file: str, effect: Effect, error: type[JobsApiError]
) -> None:
    """Behind each stands an `ssl.SSLWantReadError`, which is not trouble with TLS."""
    async with (
        tls_server(authority, answer=b"") as address,
        JobsClient(Connection(address, ca_file=ca_file)) as client,
    ):
        with pytest.raises(error):
            # The public methods wait 30 s and more.
            await client._request(
                "GET", "/api/jobs/", effect=effect, timeout=httpx.Timeout(5, read=0.1)
            )


@pytest.mark.parametrize("kind", [JobsClient, LogsClient])
async def test_authorities_are_read_once_for_all_clients_without_tls(
    monkeypatch: pytest.MonkeyPatch, kind: type[JobsClient | LogsClient]
) -> None:
    """Each cluster has clients of its own, and each read them for 20 ms in the event loop."""
    async with JobsClient(Connection("http://127.0.0.1:1")):
        pass
    made = made_contexts(monkeypatch)
    async with kind(Connection("http://127.0.0.1:1")):
        pass
    assert made == []


async def test_a_ca_file_is_read_again_only_if_it_has_changed(
    monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, ca_file: str
) -> None:
    made = made_contexts(monkeypatch)
    async with tls_server(authority) as address:
        trustme.CA().cert_pem.write_to_path(ca_file)
        for _ in range(2):
            with pytest.raises(NotRayDashboard):
                await ask(Connection(address, ca_file=ca_file))
        authority.cert_pem.write_to_path(ca_file)
        for _ in range(2):
            assert await ask(Connection(address, ca_file=ca_file)) == 0
    assert made == [ca_file, ca_file]


def made_contexts(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Return a list that gets the file of each context made for a client."""
    made: list[str | None] = []
    make = ssl.create_default_context

    def noted(*args: ssl.Purpose, cafile: str | None = None) -> ssl.SSLContext:
        if not args:
            made.append(cafile)
        return make(*args, cafile=cafile)

    monkeypatch.setattr(ssl, "create_default_context", noted)
    return made
