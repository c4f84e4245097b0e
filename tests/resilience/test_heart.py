"""The heart of the chaos suite: the faults that every installation meets. All: `make chaos`.

What a dead `JobSupervisor` leaves without a retry is in `test_driver_dies_with_its_job`, what a
dead worker leaves is in `test_recovery`, and what swallowed answers do in `test_faults_submitting`.
"""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.integration.harness import settings_of
from tests.prefect_server import send_what_is_left
from tests.resilience import faults as f
from tests.resilience.cluster import cluster
from tests.resilience.killable_server import KillableServer
from tests.resilience.pairs import PAIRS, Pair
from tests.resilience.play import play
from tests.resilience.scene import World, new_world
from tests.resilience.stages import RUNNING, SUBMITTING

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

_HEART = (
    (f.WORKER_KILLED, SUBMITTING, 1),
    (f.JOB_SUPERVISOR, RUNNING, 2),
    (f.JOB_HEAD, RUNNING, 1),
)
HEART = [
    pytest.param(
        pair, id=pair.name, marks=[] if pair.fault is f.JOB_SUPERVISOR else [pytest.mark.extra]
    )
    for pair in PAIRS
    if (pair.fault, pair.stage, pair.executions) in _HEART
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableServer]:
    folder = tmp_path_factory.mktemp("chaos-server")
    running = KillableServer(folder / "server", in_memory=True)
    home = folder / "home"
    with running, settings_of(running.api_url, home, PREFECT_WORKER_QUERY_SECONDS="1"):
        yield running
        send_what_is_left()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    server: KillableServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    with cluster() as running:
        async with new_world(server, running, tmp_path_factory.mktemp("chaos-world")) as made:
            yield made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("pair", HEART)
async def test_nothing_is_lost_and_nothing_doubled(world: World, pair: Pair) -> None:
    result = await play(world, pair)
    assert not result.wrong, result
