"""`LogsClient`: the two ways to a bounded piece of a job's log. No policy beyond a request.

Byte for byte, from the file in which Ray's supervisor collects the driver's output:

* from the agent of the driver's node, any range (`GET <agent>/logs/<file>` with `Range`), where
  the nodes can be reached from here;
* from the dashboard, the last lines (`GET /api/v0/logs/file`), where only it can be reached.

Never `/logs/tail`: 100 of them block a cluster's whole Jobs API (`docs/explanation/jobs-api.md`).
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx

from prefect_ray_worker.errors import AgentUnreachable, ClusterUnreachable, LogNotFound
from prefect_ray_worker.ray_api.agents import NodeAgents
from prefect_ray_worker.ray_api.answers import (
    error_from_illegal_header,
    error_from_response,
    error_from_transport,
    reason_of,
)
from prefect_ray_worker.ray_api.bodies import PLAIN, UnusableBody, beginning, plain_chunks
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.http import DashboardHttp
from prefect_ray_worker.ray_api.tokens import BearerAuth

# Few, whatever the number of runs: the head has other things to do.
_DASHBOARD_LIMITS = httpx.Limits(max_connections=4, max_keepalive_connections=2)
_AGENT_LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=8)
_DASHBOARD_TIMEOUT = httpx.Timeout(30, connect=5, pool=120)
# A node that a firewall keeps from us does not answer at all: better to know soon.
_AGENT_TIMEOUT = httpx.Timeout(10, connect=2, pool=120)
# Ray ends a stream after its `timeout`, 30 s if nothing is said (`state_head.py`, Ray 2.60).
_STREAM_SECONDS = 120
_CHUNK = 64 * 1024

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")


@dataclass(frozen=True)
class LogPiece:
    """A piece of a log.

    Attributes:
        data: The bytes.
        is_last: Whether the log ended with them when the request was answered.
    """

    data: bytes
    is_last: bool


def log_file_name(submission_id: str) -> str:
    """Return the name of a job's log in the log folder of its driver's node (Ray 2.60)."""
    return f"job-driver-{submission_id}.log"


class LogsClient:
    """Reads logs of jobs of one cluster, through two small pools of sockets of its own.

    An agent is asked only at the IP address of a node that the cluster lists; on loopback, only if
    the cluster is there itself. The cluster's bearer token goes to an agent only if all of this
    holds: the agent refused a request without it in Ray's own words, the cluster itself lists the
    agent's port, and the dashboard's connection is not encrypted either. Headers and cookies are
    for a proxy before the dashboard and never go to an agent.

    Args:
        connection: The cluster.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bearer = BearerAuth(connection.token)
        self._nodes = NodeAgents(connection)
        self._wants_token: set[str] = set()
        self._dashboard = DashboardHttp(
            "LogsClient", limits=_DASHBOARD_LIMITS, timeouts=_DASHBOARD_TIMEOUT
        )
        self._agents: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        await self._dashboard.connect(self._connection)
        self._agents = httpx.AsyncClient(
            # Agents speak plain HTTP only, and this reads no authorities: 20 ms in the event loop.
            verify=False,  # noqa: S501
            timeout=_AGENT_TIMEOUT,
            limits=_AGENT_LIMITS,
            trust_env=False,
            follow_redirects=False,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._dashboard.close()
        if self._agents is not None:
            await self._agents.aclose()
        self._agents = None

    async def reconnect(self, connection: Connection) -> None:
        """Send further requests through another connection, for example with a renewed token."""
        await self._dashboard.connect(connection)
        self._connection = connection
        self._bearer = BearerAuth(connection.token)

    async def from_agent(self, agent: str, name: str, *, start: int, room: int) -> LogPiece:
        """Return at most `room` bytes of a log from an offset on.

        Args:
            agent: The `driver_agent_http_address` that the cluster gives for the job.
            name: The file.
            start: The offset of the first byte.
            room: The most bytes to return.

        Raises:
            AgentUnreachable: No agent of this cluster answers there, or it must not be asked.
            LogNotFound: An agent answers, and does not have the file.
        """
        if self._agents is None:
            raise RuntimeError("Use LogsClient as an async context manager.")
        async with self._dashboard.lent() as dashboard:
            await self._nodes.check(agent, dashboard)
        span = f"bytes={start}-{start + room - 1}"
        try:
            request = self._agents.build_request(
                "GET", f"{agent}/logs/{name}", headers={"Range": span, **PLAIN}
            )
            piece = await self._ranged(self._agents, request, agent, start, room)
            if piece is None and await self._may_show_token(agent):
                self._wants_token.add(agent)
                piece = await self._ranged(self._agents, request, agent, start, room)
        except UnusableBody:
            raise AgentUnreachable(f"The Ray agent at {agent} compresses what it sends.") from None
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            reason = reason_of(exc)
            raise AgentUnreachable(f"No answer from the Ray agent at {agent} ({reason}).") from exc
        if piece is None:
            raise AgentUnreachable(f"The Ray agent at {agent} wants a token that it may not have.")
        return piece

    async def from_dashboard(
        self, node_id: str, name: str, *, lines: int, skip: int, room: int
    ) -> LogPiece:
        """Return at most `room` bytes of the last lines of a log, after the first `skip` bytes.

        Args:
            node_id: The node that has the file, in hexadecimal.
            name: The file.
            lines: How many of the last lines; -1 for all.
            skip: How many bytes to pass over. They travel, and are not kept.
            room: The most bytes to return.

        Raises:
            LogNotFound: A reachable cluster does not have the node, or the file.
            JobsApiError: Any other subclass.
        """
        address = self._connection.address
        wanted: dict[str, str | int] = {
            "node_id": node_id,
            "filename": name,
            "lines": lines,
            "timeout": _STREAM_SECONDS,
        }
        try:
            async with (
                self._dashboard.lent() as dashboard,
                dashboard.stream(
                    "GET", "/api/v0/logs/file", params=wanted, headers=PLAIN
                ) as answer,
            ):
                if not answer.is_success:
                    said = await beginning(answer)
                    raise _not_found(said, address) or error_from_response(
                        said, address=address, effect="safe"
                    )
                return await _take(plain_chunks(answer, _CHUNK), skip, room)
        except UnusableBody as exc:
            raise ClusterUnreachable(f"{address} answered with {exc}.") from exc
        except (httpx.LocalProtocolError, UnicodeEncodeError):
            raise error_from_illegal_header(address=address) from None
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise error_from_transport(exc, address=address, effect="safe") from exc

    async def _ranged(
        self, client: httpx.AsyncClient, request: httpx.Request, agent: str, start: int, room: int
    ) -> LogPiece | None:
        """Send a ranged request; return None if the agent wants a token and got none."""
        auth = self._bearer if agent in self._wants_token else None
        answer = await client.send(request, auth=auth, stream=True)
        try:
            span = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            match answer.status_code:
                case HTTPStatus.PARTIAL_CONTENT if span and span[1] == str(start):
                    piece = await _take(plain_chunks(answer, _CHUNK), 0, room)
                    return LogPiece(piece.data, start + len(piece.data) >= int(span[2]))
                case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE if span and int(span[2]) == start:
                    return LogPiece(b"", is_last=True)
                case HTTPStatus.NOT_FOUND if await _is_rays_not_found(answer):
                    raise LogNotFound(f"The Ray agent at {agent} does not have the log.")
                case HTTPStatus.UNAUTHORIZED if auth is None:
                    text = await _take(plain_chunks(answer, _CHUNK), 0, _CHUNK)
                    return None if b"Missing authentication token" in text.data else _other(answer)
                case _:
                    return _other(answer)
        finally:
            await answer.aclose()

    async def _may_show_token(self, agent: str) -> bool:
        # Agents speak plain HTTP only: a token that went encrypted so far stays encrypted.
        if agent in self._wants_token or not self._connection.address.startswith("http://"):
            return False
        async with self._dashboard.lent() as dashboard:
            return await self._nodes.may_have_token(agent, dashboard)


async def _take(stream: AsyncIterator[bytes], skip: int, room: int) -> LogPiece:
    kept = bytearray()
    async for chunk in stream:
        passed = min(skip, len(chunk))
        skip -= passed
        if len(kept) + len(chunk) - passed > room:
            kept += chunk[passed : passed + room - len(kept)]
            return LogPiece(bytes(kept), is_last=False)
        kept += chunk[passed:]
    return LogPiece(bytes(kept), is_last=True)


async def _is_rays_not_found(answer: httpx.Response) -> bool:
    # The agent's file server is aiohttp's (Ray 2.60). Any other page is another program's, on a
    # port that the agent has left, and says nothing about the log.
    said = await _take(plain_chunks(answer, _CHUNK), 0, _CHUNK)
    return said.data.startswith(b"404: Not Found")


def _other(answer: httpx.Response) -> LogPiece:
    where = urlsplit(str(answer.url)).netloc
    raise AgentUnreachable(
        f"What answers at {where} is not an agent of this cluster (HTTP {answer.status_code})."
    )


def _not_found(answer: httpx.Response, address: str) -> LogNotFound | None:
    text = answer.text
    if "A file is not found at" in text or (
        text.startswith("Agent for node id") and "exist" in text
    ):
        return LogNotFound(f"{address}: {text[:400]}")
    return None
