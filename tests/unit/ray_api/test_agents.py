"""No request, and no token, goes to a host that only a job's record names."""

from collections.abc import AsyncIterator

import pytest

from prefect_ray_worker.errors import AgentUnreachable
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient, log_file_name
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.fake_ray import FakeRay
from tests.fake_ray.nodes import FakeNode

NAME = log_file_name("j")
TOKEN = "s3cret"
REFUSED = (
    "is not the address of a Ray agent|not on a node that the cluster lists|no address of a node"
)
"""Before any request; a request that fails has another message."""


@pytest.fixture
async def ray() -> AsyncIterator[FakeRay]:
    async with FakeRay() as fake:
        fake.add_job("j").print(b"one\n")
        yield fake


async def read(connection: Connection, agent: str) -> bytes:
    async with LogsClient(connection) as client:
        return (await client.from_agent(agent, NAME, start=0, room=10)).data


@pytest.mark.parametrize(
    "agent",
    [
        "http://metadata.internal:80",
        "https://127.0.0.1:{port}",
        "http://127.1:{port}",
        "http://2130706433:{port}",
        "http://0x7f000001:{port}",
        "http://127.0.0.1",
        "http://127.0.0.1:{port}/admin?",
        "http://127.0.0.1:{port}#",
        "http://u:p@127.0.0.1:{port}",
        "http://127.0.0.1:{port}\n",
        "http://10.0.0.1:{port}",
        "http://169.254.169.254:80",
        "http://0.0.0.0:{port}",
        "http://[::]:{port}",
        "http://[fe80::1]:{port}",
        "http://[::ffff:169.254.169.254]:80",
    ],
)
async def test_what_is_no_node_of_the_cluster_gets_no_request(ray: FakeRay, agent: str) -> None:
    port = ray.address.rpartition(":")[2]
    with pytest.raises(AgentUnreachable, match=REFUSED):
        await read(Connection(ray.address), agent.format(port=port))
    assert not ray.requests.number_of("GET", "^/logs/")


@pytest.mark.parametrize(
    "agent",
    ["http://127.0.0.1:8265", "http://[::1]:1", "http://[::ffff:127.0.0.1]:1", "http://0.0.0.0:1"],
)
async def test_loopback_is_no_agent_of_a_cluster_elsewhere(agent: str) -> None:
    with pytest.raises(AgentUnreachable, match="another machine"):
        await read(Connection("http://ray-head.example:8265"), agent)


async def test_an_agent_on_a_listed_node_is_asked(ray: FakeRay) -> None:
    assert await read(Connection(ray.address), ray.address) == b"one\n"
    ray.nodes = [FakeNode({"CPU": 1.0}, state="DEAD"), FakeNode({"CPU": 1.0}, ip="10.0.0.7")]
    with pytest.raises(AgentUnreachable, match="not on a node"):
        await read(Connection(ray.address), ray.address)


@pytest.mark.parametrize("listed", [None, 1])
async def test_a_port_that_the_cluster_does_not_list_gets_no_token(
    ray: FakeRay, listed: int | None
) -> None:
    """A job can listen on its node, and answer in Ray's own words."""
    ray.token = TOKEN
    ray.listed_agent_port = listed
    with pytest.raises(AgentUnreachable, match="wants a token"):
        await read(Connection(ray.address, TokenSource(literal=TOKEN)), ray.address)
    at_agent = [
        headers.get("authorization")
        for (_, path), headers in zip(ray.requests, ray.requests.headers, strict=True)
        if path.startswith("/logs/")
    ]
    assert at_agent == [None]


async def test_a_cluster_that_does_not_list_its_nodes_has_no_agents(ray: FakeRay) -> None:
    ray.token = "another"
    with pytest.raises(AgentUnreachable, match="does not list"):
        await read(Connection(ray.address, TokenSource(literal=TOKEN)), ray.address)
