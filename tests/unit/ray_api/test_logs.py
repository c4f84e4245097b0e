"""`LogsClient` over real HTTP: bounded pieces, both ways, and where the token may go."""

from collections.abc import AsyncIterator

import anyio
import pytest

from prefect_ray_worker.errors import (
    AgentUnreachable,
    ClusterUnreachable,
    LogNotFound,
    NotRayDashboard,
)
from prefect_ray_worker.ray_api import logs as logs_module
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogPiece, LogsClient, log_file_name
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.fake_ray import FakeRay, Fault, Kind
from tests.ports import free_port

NODE = "0" * 56
NAME = log_file_name("j")
TOKEN = "s3cret"


@pytest.fixture
def ray(ray: FakeRay) -> FakeRay:
    ray.add_job("j").print(b"one\ntwo\nthree\n")
    return ray


@pytest.fixture
async def client(ray: FakeRay) -> AsyncIterator[LogsClient]:
    async with LogsClient(Connection(ray.address)) as client:
        yield client


@pytest.mark.parametrize(
    ("start", "room", "expected"),
    [
        (0, 4, LogPiece(b"one\n", is_last=False)),
        (4, 100, LogPiece(b"two\nthree\n", is_last=True)),
        (14, 100, LogPiece(b"", is_last=True)),
        (0, 14, LogPiece(b"one\ntwo\nthree\n", is_last=True)),
    ],
)
async def test_agent_gives_any_range(
    ray: FakeRay, client: LogsClient, start: int, room: int, expected: LogPiece
) -> None:
    assert await client.from_agent(ray.address, NAME, start=start, room=room) == expected


@pytest.mark.parametrize(
    ("lines", "skip", "room", "expected"),
    [
        (-1, 0, 100, LogPiece(b"one\ntwo\nthree\n", is_last=True)),
        (-1, 4, 4, LogPiece(b"two\n", is_last=False)),
        (2, 0, 100, LogPiece(b"two\nthree\n", is_last=True)),
        (-1, 14, 100, LogPiece(b"", is_last=True)),
    ],
)
async def test_dashboard_gives_the_last_lines(
    client: LogsClient, lines: int, skip: int, room: int, expected: LogPiece
) -> None:
    found = await client.from_dashboard(NODE, NAME, lines=lines, skip=skip, room=room)
    assert found == expected


async def test_dashboard_gives_no_more_than_there_is_room_for(
    ray: FakeRay, client: LogsClient
) -> None:
    ray.jobs["j"].log = b"0123456789" * 1_000_000
    piece = await client.from_dashboard(NODE, NAME, lines=-1, skip=5, room=1000)
    assert piece == LogPiece(b"5678901234" * 100, is_last=False)


async def test_missing_file_and_lost_node_are_told(ray: FakeRay, client: LogsClient) -> None:
    ray.jobs["j"].log = None
    with pytest.raises(LogNotFound):
        await client.from_agent(ray.address, NAME, start=0, room=10)
    with pytest.raises(LogNotFound, match="A file is not found"):
        await client.from_dashboard(NODE, NAME, lines=-1, skip=0, room=10)
    ray.logs.lost_nodes = True
    with pytest.raises(AgentUnreachable):
        await client.from_agent(ray.address, NAME, start=0, room=10)
    with pytest.raises(LogNotFound, match="Agent for node id"):
        await client.from_dashboard(NODE, NAME, lines=-1, skip=0, room=10)


@pytest.mark.parametrize("kind", [Kind.LOGIN_PAGE, Kind.REDIRECT, Kind.DROP, Kind.STATUS])
async def test_what_is_no_agent_is_not_read(ray: FakeRay, client: LogsClient, kind: Kind) -> None:
    ray.faults.add(Fault("GET", "^/logs/", kind=kind))
    with pytest.raises(AgentUnreachable):
        await client.from_agent(ray.address, NAME, start=0, room=10)


async def test_agent_whose_file_is_shorter_is_another(ray: FakeRay, client: LogsClient) -> None:
    with pytest.raises(AgentUnreachable, match="HTTP 416"):
        await client.from_agent(ray.address, NAME, start=15, room=10)


async def test_closed_port_is_unreachable(client: LogsClient) -> None:
    with pytest.raises(AgentUnreachable, match="No answer"):
        await client.from_agent(f"http://127.0.0.1:{free_port()}", NAME, start=0, room=10)


@pytest.mark.parametrize(
    ("kind", "error"), [(Kind.DROP, ClusterUnreachable), (Kind.REDIRECT, NotRayDashboard)]
)
async def test_trouble_of_the_dashboard_has_its_usual_name(
    ray: FakeRay, client: LogsClient, kind: Kind, error: type[Exception]
) -> None:
    ray.faults.add(Fault("GET", "^/api/v0/logs", kind=kind))
    with pytest.raises(error):
        await client.from_dashboard(NODE, NAME, lines=-1, skip=0, room=10)


async def test_loopback_agent_of_a_cluster_elsewhere_is_not_asked(ray: FakeRay) -> None:
    async with LogsClient(Connection("http://ray-head.example:8265")) as client:
        with pytest.raises(AgentUnreachable, match="loopback"):
            await client.from_agent(ray.address, NAME, start=0, room=10)
    assert ray.requests == []


def at_agent(ray: FakeRay) -> list[dict[str, str]]:
    """The headers of the requests that went to the agent."""
    return [
        headers
        for (_, path), headers in zip(ray.requests, ray.requests.headers, strict=True)
        if path.startswith("/logs/")
    ]


async def test_token_is_shown_only_when_an_agent_asks_for_it(ray: FakeRay) -> None:
    connection = Connection(
        ray.address,
        TokenSource(literal=TOKEN),
        headers=(("X-Proxy", "hush"),),
        cookies=(("c", "1"),),
    )
    async with LogsClient(connection) as client:
        await client.from_agent(ray.address, NAME, start=0, room=10)
        ray.token = TOKEN
        for _ in range(2):
            await client.from_agent(ray.address, NAME, start=0, room=10)
    shown = [headers.get("authorization") for headers in at_agent(ray)]
    assert shown == [None, None, f"Bearer {TOKEN}", f"Bearer {TOKEN}"]
    assert not [h for h in at_agent(ray) if "x-proxy" in h or "cookie" in h]


async def test_token_is_not_shown_to_what_refuses_in_other_words(ray: FakeRay) -> None:
    ray.faults.add(Fault("GET", "^/logs/", kind=Kind.STATUS, status=401, body="log in", times=None))
    async with LogsClient(Connection(ray.address, TokenSource(literal=TOKEN))) as client:
        with pytest.raises(AgentUnreachable, match="HTTP 401"):
            await client.from_agent(ray.address, NAME, start=0, room=10)
    assert not [h for h in at_agent(ray) if "authorization" in h]


async def test_token_that_goes_encrypted_to_the_dashboard_goes_to_no_agent(ray: FakeRay) -> None:
    ray.token = TOKEN
    secure = Connection("https://127.0.0.1:1", TokenSource(literal=TOKEN))
    async with LogsClient(secure) as client:
        # Nothing listens at the https address: as if it had listed its nodes.
        client._nodes._listed, client._nodes._listed_at = {"127.0.0.1"}, anyio.current_time()
        with pytest.raises(AgentUnreachable, match="wants a token"):
            await client.from_agent(ray.address, NAME, start=0, room=10)
    assert not [h for h in at_agent(ray) if "authorization" in h]


def test_pools_of_sockets_are_small() -> None:
    pools = (logs_module._AGENT_LIMITS, logs_module._DASHBOARD_LIMITS)
    assert sum(pool.max_connections or 999 for pool in pools) <= 12
