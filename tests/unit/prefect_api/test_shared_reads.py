"""`SharedReads`: one request for all that ask at once, and none that is older than the question."""

from collections.abc import Callable
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from anyio.lowlevel import checkpoint
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from pydantic import BaseModel

from prefect_ray_worker.prefect_api.shared_reads import SharedReads

DEPLOYMENT = uuid4()


class Thing(BaseModel):
    version: int
    variables: dict[str, str]


class Server:
    """Answers with a version that each request raises."""

    def __init__(self) -> None:
        self.version = 0
        self.trouble: Exception | None = None
        self.may_answer: anyio.Event | None = None

    async def read(self, _: UUID) -> Thing:
        self.version += 1
        version = self.version
        await anyio.sleep(0.05)
        if self.may_answer is not None:
            await self.may_answer.wait()
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble
        return Thing(version=version, variables={"a": "b"})


async def asked(
    reads: SharedReads[Thing],
    times: int,
    *,
    pause: float = 0.0,
    then: Callable[[], object] = lambda: None,
) -> list[Thing]:
    """Return what callers get that ask one after another, none of them waiting for an answer."""
    found: list[Thing] = []

    async def ask() -> None:
        found.append(await reads(DEPLOYMENT))

    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            tasks.start_soon(ask)
            await anyio.sleep(pause)
        then()
    return found


async def test_a_hundred_callers_need_two_requests() -> None:
    server = Server()
    server.may_answer = anyio.Event()
    found = await asked(SharedReads(server.read), 100, then=server.may_answer.set)
    assert len(found) == 100
    assert server.version == 2


async def test_answer_is_never_older_than_the_question() -> None:
    """A deployment that was changed, and then run, must be read as it is now."""
    reads = SharedReads(Server().read)
    found = await asked(reads, 2, pause=0.01)  # the first request is under way
    assert [thing.version for thing in found] == [1, 2]
    assert (await reads(DEPLOYMENT)).version == 3, "nothing is kept"


async def test_callers_get_copies_of_their_own() -> None:
    """Prefect merges the variables of a run into those of its deployment, in place (3.8.8)."""
    found = await asked(SharedReads(Server().read), 3)
    found[1].variables["a"] = "of another run"
    assert found[2].variables == {"a": "b"}


async def test_error_or_cancellation_of_one_caller_is_not_the_others() -> None:
    server = Server()
    reads = SharedReads(server.read)
    server.trouble = ValueError("away")
    found: list[Thing] = []

    async def ask() -> None:
        found.append(await reads(DEPLOYMENT))

    async def fail() -> None:
        with pytest.raises(ValueError, match="away"):
            await reads(DEPLOYMENT)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        await checkpoint()
        with anyio.move_on_after(0.01):
            await ask()
        tasks.start_soon(ask)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("says", "raised"),
    [
        ('{"detail": "Deployment not found"}', ObjectNotFound),
        ("<html>no such host</html>", PrefectHTTPStatusError),
    ],
)
async def test_a_404_of_a_proxy_is_no_deployment_that_is_gone(
    says: str, raised: type[Exception]
) -> None:
    """Prefect's worker cancels a run whose deployment is gone (3.8.8)."""
    request = httpx.Request("GET", "http://api")
    answer = httpx.Response(404, text=says, request=request)
    server = Server()
    server.trouble = ObjectNotFound(PrefectHTTPStatusError("", request=request, response=answer))
    with pytest.raises(raised):
        await SharedReads(server.read)(DEPLOYMENT)
