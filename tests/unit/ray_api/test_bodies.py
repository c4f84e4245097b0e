"""Answers without an end, and those that grow: a cluster must not fill the worker's memory."""

import asyncio
import gzip
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache

import pytest

from prefect_ray_worker.errors import (
    AgentUnreachable,
    AmbiguousError,
    ClusterUnreachable,
)
from prefect_ray_worker.ray_api import bodies
from prefect_ray_worker.ray_api import client as client_module
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient
from prefect_ray_worker.ray_api.models import JobSubmitRequest

REQUEST = JobSubmitRequest(entrypoint="true", submission_id="a", runtime_env={}, metadata={})
MIB = 1024 * 1024

Ask = Callable[[JobsClient], Awaitable[object]]
ENDPOINTS: dict[str, Ask] = {
    "version": lambda client: client.version(),
    "get": lambda client: client.get("a"),
    "list": lambda client: client.list(),
    "stop": lambda client: client.stop("a"),
    "delete": lambda client: client.delete("a"),
    "resources": lambda client: client.resources(),
    "package": lambda client: client.has_package("p"),
    "submit": lambda client: client.submit(REQUEST),
}


# Errors are read in one place, but for those of the list, which is read as it arrives.
ANSWERS = [
    *((endpoint, b"200 OK") for endpoint in ENDPOINTS),
    *((endpoint, b"500 Internal Server Error") for endpoint in ("list", "submit")),
]


@cache
def bomb() -> bytes:
    """Return 300 MiB of spaces in 300 KB, which takes a second to make."""
    return gzip.compress(b" " * 300 * MIB, compresslevel=9)


@asynccontextmanager
async def answering(
    head: bytes, body: bytes, *, repeat: int = 1, pause: float = 0
) -> AsyncIterator[str]:
    """Serve one answer to whatever is asked; its body is sent so many times."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + head + b"\r\nConnection: close\r\n\r\n")
            for _ in range(repeat):
                writer.write(body)
                await writer.drain()
                await asyncio.sleep(pause)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize(("endpoint", "status"), ANSWERS)
async def test_a_compressed_answer_does_not_grow_in_memory(endpoint: str, status: bytes) -> None:
    """204 KB of gzip grew the worker to 471 MB."""
    body, before = bomb(), peak_mib()
    head = status + b"\r\nContent-Type: application/json\r\nContent-Encoding: gzip"
    async with answering(head, body) as address, JobsClient(Connection(address)) as client:
        with pytest.raises((ClusterUnreachable, AmbiguousError)):
            await ENDPOINTS[endpoint](client)
    assert peak_mib() - before < 60


@pytest.mark.parametrize(("endpoint", "status"), ANSWERS)
async def test_an_answer_without_an_end_is_given_up(endpoint: str, status: bytes) -> None:
    before = peak_mib()
    head = status + b"\r\nContent-Type: application/json"
    async with (
        answering(head, b'{"a": "' + b"x" * MIB, repeat=300) as address,
        JobsClient(Connection(address)) as client,
    ):
        with pytest.raises((ClusterUnreachable, AmbiguousError)):
            await ENDPOINTS[endpoint](client)
    assert peak_mib() - before < 150


async def test_an_answer_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_LONGEST_ANSWER_SECONDS", 0.5)
    async with (
        answering(b"200 OK", b" ", repeat=1_000, pause=0.05) as address,
        JobsClient(Connection(address)) as client,
    ):
        with pytest.raises(ClusterUnreachable, match="does not end"):
            await client.version()
        with pytest.raises(ClusterUnreachable, match="does not end"):
            await client.list()


async def test_deep_json_is_an_answer_that_is_not_ray_s() -> None:
    """A RecursionError went past the handlers of a cluster that does not answer."""
    async with (
        answering(b"200 OK", b"[" + b'{"a":' * 100_000) as address,
        JobsClient(Connection(address)) as client,
    ):
        for endpoint in ENDPOINTS.values():
            if endpoint is not ENDPOINTS["package"]:
                with pytest.raises((ClusterUnreachable, AmbiguousError)):
                    await endpoint(client)


@pytest.mark.parametrize("way", ["agent", "dashboard"])
@pytest.mark.parametrize("status", [b"200 OK", b"206 Partial Content", b"500 Error"])
async def test_compressed_logs_are_not_taken(way: str, status: bytes) -> None:
    head = status + b"\r\nContent-Encoding: gzip\r\nContent-Range: bytes 0-9/10"
    body, before = bomb(), peak_mib()
    async with answering(head, body) as address, LogsClient(Connection(address)) as client:
        asked = (
            client.from_agent(address, "x.log", start=0, room=100)
            if way == "agent"
            else client.from_dashboard("0", "x.log", lines=-1, skip=0, room=100)
        )
        with pytest.raises((AgentUnreachable, ClusterUnreachable)):
            await asked
    assert peak_mib() - before < 60


def test_an_answer_may_be_as_long_as_that_of_a_cluster_of_ten_thousand_nodes() -> None:
    assert bodies._MOST >= 10_000 * 2_000


async def test_a_404_that_is_not_the_agent_s_says_nothing_about_a_log() -> None:
    head = b"404 Not Found\r\nContent-Type: text/html"
    async with (
        answering(head, b"<html>no such page</html>") as address,
        LogsClient(Connection(address)) as client,
    ):
        with pytest.raises(AgentUnreachable):
            await client.from_agent(address, "x.log", start=0, room=100)
