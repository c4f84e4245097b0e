"""`NodeAgents`: which addresses are agents of a cluster's nodes, as the cluster itself says.

The address of a job's agent comes from the job's record, which any job of the cluster can
rewrite. So nothing is sent to an address that could be another service of the worker's network.
"""

import ipaddress
import re
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

import anyio
import httpx
from pydantic import BaseModel, Field, ValidationError

from prefect_ray_worker.errors import AgentUnreachable
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.resources import NodesAnswer
from prefect_ray_worker.shared.loopback import ip_address_of

T = TypeVar("T", bound=BaseModel)

_ADDRESS = re.compile(r"http://(?:([0-9.]+)|\[([0-9a-fA-F:.]+)\]):([0-9]{1,5})")
_FRESH_SECONDS = 300.0
# A node that the autoscaler has just added is listed within seconds.
_ASK_AGAIN_SECONDS = 10.0
_LONGEST_ANSWER = 8 * 1024 * 1024


class _Raylet(BaseModel):
    address: str | None = Field(default=None, alias="nodeManagerAddress")
    agent_port: int | None = Field(default=None, alias="dashboardAgentListenPort")


class _Summary(BaseModel):
    raylet: _Raylet = Field(default_factory=_Raylet)


class _Summaries(BaseModel):
    summary: list[_Summary]


class _SummaryAnswer(BaseModel):
    data: _Summaries


class NodeAgents:
    """Asks the dashboard of one cluster for its nodes, and keeps the answers for some minutes.

    Args:
        connection: The cluster.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._listed: set[str] = set()
        self._listed_at = -_FRESH_SECONDS
        self._vouched: set[str] = set()
        self._vouched_at = -_FRESH_SECONDS
        self._lock = anyio.Lock()

    async def check(self, agent: str, dashboard: httpx.AsyncClient) -> None:
        """Check that requests may be sent to an address.

        Args:
            agent: As a job's record has it.
            dashboard: Client of the cluster's dashboard.

        Raises:
            AgentUnreachable: It is not `http://<IP>:<port>` of a node that the cluster lists.
        """
        ip, _ = self._parsed(agent)
        async with self._lock:
            if not self._is_known(str(ip), self._listed, self._listed_at):
                answer = await self._ask(dashboard, "/api/v0/nodes?limit=10000", NodesAnswer)
                self._listed_at = anyio.current_time()
                alive = (n.node_ip for n in answer.data.result.result if n.state == "ALIVE")
                self._listed = {_canonical(ip) for ip in alive if ip}
        if str(ip) not in self._listed:
            raise AgentUnreachable(f"{agent} is not on a node that the cluster lists.")

    async def may_have_token(self, agent: str, dashboard: httpx.AsyncClient) -> bool:
        """Return whether the cluster itself says that its agent listens at exactly this address.

        Ray says so since it keeps the agent's port in its table of nodes (2.60). Otherwise the
        port could be that of a listener which a job has opened on its node.
        """
        ip, port = self._parsed(agent)
        place = f"{ip} {port}"
        async with self._lock:
            if not self._is_known(place, self._vouched, self._vouched_at):
                answer = await self._ask(dashboard, "/nodes?view=summary", _SummaryAnswer)
                self._vouched_at = anyio.current_time()
                raylets = [node.raylet for node in answer.data.summary]
                self._vouched = {f"{_canonical(r.address or '')} {r.agent_port}" for r in raylets}
        return place in self._vouched

    def _parsed(self, agent: str) -> tuple[IPv4Address | IPv6Address, int]:
        match = _ADDRESS.fullmatch(agent)
        try:
            ip = ipaddress.ip_address(match[1] or match[2]) if match else None
        except ValueError:
            ip = None
        if match is None or ip is None:
            raise AgentUnreachable(f"{agent!r} is not the address of a Ray agent.")
        ip = ip_address_of(str(ip)) or ip
        # Behind a gateway, the address says where the gateway is.
        is_there_too = (
            ip.is_loopback and self._connection.is_loopback and self._connection.gateway is None
        )
        if (ip.is_loopback or ip.is_unspecified or ip.is_link_local or ip.is_multicast) and (
            not is_there_too
        ):
            kind = "loopback" if ip.is_loopback else "no address of a node"
            raise AgentUnreachable(f"{agent} is {kind}, and the cluster is on another machine.")
        return ip, int(match[3])

    def _is_known(self, place: str, known: set[str], since: float) -> bool:
        age = anyio.current_time() - since
        return age < (_FRESH_SECONDS if place in known else _ASK_AGAIN_SECONDS)

    async def _ask(self, dashboard: httpx.AsyncClient, path: str, kind: type[T]) -> T:
        try:
            async with dashboard.stream("GET", path) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _LONGEST_ANSWER:
                        raise AgentUnreachable("The list of the cluster's nodes is too long.")
            if response.is_success:
                return kind.model_validate_json(bytes(body))
        except (httpx.HTTPError, httpx.InvalidURL, ValidationError) as exc:
            raise AgentUnreachable(
                f"The cluster does not list its nodes ({type(exc).__name__})."
            ) from exc
        raise AgentUnreachable(
            f"The cluster does not list its nodes (HTTP {response.status_code})."
        )


def _canonical(ip: str) -> str:
    address = ip_address_of(ip)
    return ip if address is None else str(address)
