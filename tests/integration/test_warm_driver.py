"""A run whose engine is forked from a zygote, which an earlier run has left behind on its node."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.driver.supervise.rendezvous import Rendezvous
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import InfrastructurePid
from tests.integration.driver_kit import begin, ended_job, ends, start, traces
from tests.integration.harness import Pool, new_pool
from tests.integration.processes import (
    all_gone,
    engine_of,
    guard_of,
    is_alive,
    is_forked,
    job_supervisor_of,
    of_run,
    raylet_of,
    supervisor_of,
    zygote_of,
    zygotes_at,
)
from tests.real_ray import RealRay, real_ray
from tests.waiting import wait_until

pytestmark = pytest.mark.ray

_GONE_SECONDS = 3


@dataclass
class Node:
    """A node, and runs of one environment on it.

    Attributes:
        pool: Whose runs go there.
        rendezvous: Where its zygotes are found.
        folder: Of the traces.
        variables: Of all runs.
        run_id: The one that has begun last.
    """

    pool: Pool
    rendezvous: Rendezvous
    folder: Path
    variables: dict[str, Any]
    run_id: UUID = field(default_factory=uuid4)

    @property
    def zygotes(self) -> frozenset[int]:
        return zygotes_at(self.rendezvous)

    async def warm_up(self) -> psutil.Process:
        """Have a run leave a zygote behind, and return it."""
        before = self.zygotes
        run_id = await self.start("prints", "first")
        await ends(self.pool, run_id, StateType.COMPLETED)
        await wait_until(lambda: self.zygotes - before, timeout=10, description="a zygote")
        (zygote,) = self.zygotes - before
        return psutil.Process(zygote)

    async def start(self, flow_name: str, name: str, /, **parameters: Any) -> UUID:
        variables = {"job_variables": self.variables}
        return await start(
            self.pool, flow_name, self.folder / name, parameters=parameters, **variables
        )

    async def begin(self, flow_name: str, name: str, /, trace: str = "pids") -> psutil.Process:
        """Start a run, wait for its user code, and return its engine."""
        self.run_id = await begin(
            self.pool, flow_name, self.folder / name, trace=trace, job_variables=self.variables
        )
        return engine_of(self.folder / name, trace)

    async def finish(self, name: str) -> None:
        """Let the run `ends_when_permitted` end, and see that nothing of it is left."""
        (self.folder / name / "go").touch()
        await ends(self.pool, self.run_id, StateType.COMPLETED)
        await all_gone(self.run_id, within=_GONE_SECONDS)

    def seen(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "seen").read_text())


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RealRay]:
    """A Ray on which nobody else's runs leave zygotes, or take the place of ours."""
    with real_ray() as ray:
        yield ray


@pytest.fixture
def node(pool: Pool, ray_cluster: RealRay, tmp_path: Path) -> Node:
    """Its node, with an environment that no other test has."""
    return Node(pool, Rendezvous(raylet_of(ray_cluster.pid).pid), tmp_path, own_environment())


def own_environment() -> dict[str, Any]:
    return {"env": {"TEST": uuid4().hex}}


async def test_nothing_of_one_run_is_visible_in_another(node: Node) -> None:
    """Environment, folder, modules, open files, arguments; `ps` shows the run itself."""
    async with node.pool.working():
        zygote = await node.warm_up()
        ids: list[str] = []
        for name in ("second", "third"):
            run_id = await node.start("shows_itself", name, name=name)
            await ends(node.pool, run_id, StateType.COMPLETED)
            ids.append(str(run_id))
        second, third = node.seen("second"), node.seen("third")
        for seen, own, other in ((second, *ids), (third, *reversed(ids))):
            assert seen["environment"]["PREFECT__FLOW_RUN_ID"] == own
            assert seen["environment"]["PREFECT__FLOW_NAME"] == "shows-itself"
            assert seen["environment"]["PREFECT__DEPLOYMENT_NAME"]
            assert seen["environment"]["PREFECT__WORKER_NAME"]
            assert own in seen["shown"]
            assert other not in json.dumps(seen)
            assert seen["arguments"][0] == own
            assert seen["left"] is None
            assert "LEFT_BY" not in seen["environment"]
            assert "left_by" not in seen["modules"]
            assert not [file for file in seen["files"] if "job-driver" in file]
        assert second["random"] != third["random"]
        assert second["mask"] == third["mask"]
        assert set(second["environment"]) == set(third["environment"])
        assert zygote.environ() == {}
        assert zygote.cwd() == "/"
        # It may look through the processes of the third run at this moment.
        files = [file.path for file in zygote.open_files() if not file.path.startswith("/proc/")]
        assert [Path(file).suffix for file in files] == [".lock"]


async def test_a_forked_engine_is_cancelled_as_any_other(node: Node) -> None:
    async with node.pool.working():
        zygote = await node.warm_up()
        engine = await node.begin("loops", "second")
        assert is_forked(engine)
        assert zygote_of(engine) == zygote
        await node.pool.cancel(node.run_id)
        await ends(node.pool, node.run_id, StateType.CANCELLED)
        assert traces(node.folder / "second", "on_cancellation") == ["Cancelling"]
        await all_gone(node.run_id, within=_GONE_SECONDS)
        assert is_alive(zygote)


@pytest.mark.extra
async def test_another_environment_is_no_fork(node: Node) -> None:
    async with node.pool.working():
        await node.warm_up()
        node.variables = own_environment()
        assert not is_forked(await node.begin("ends_when_permitted", "other", "ran"))
        await node.finish("other")


@pytest.mark.extra
async def test_no_zygote_has_a_log_file_that_prefect_has_opened(node: Node) -> None:
    """A forked engine would write its log into another file."""
    configuration, log = node.folder / "logging.yml", node.folder / "log"
    configuration.write_text(
        "{version: 1, root: {level: INFO, handlers: [file]}, handlers: {file: "
        f"{{class: logging.FileHandler, filename: {log}}}}}}}"
    )
    node.variables["env"]["PREFECT_LOGGING_CONFIG_PATH"] = str(configuration)
    async with node.pool.working():
        for name in ("first", "second"):
            assert not is_forked(await node.begin("ends_when_permitted", name, "ran"))
            await node.finish(name)
    assert log.read_text().count("Finished in state Completed()") == 2


@pytest.mark.extra
@pytest.mark.parametrize(
    ("victim_of", "category"),
    [
        (job_supervisor_of, "SupervisorDied"),
        (guard_of, "KilledBySignal"),
        (supervisor_of, "KilledBySignal"),
    ],
)
async def test_nothing_is_left_of_a_forked_run_without(
    node: Node, victim_of: Callable[[psutil.Process], psutil.Process], category: str
) -> None:
    """The zygote lives on, for others."""
    async with node.pool.working():
        zygote = await node.warm_up()
        engine = await node.begin("starts_programs", "second")
        assert is_forked(engine)
        assert len(of_run(node.run_id)) == 5, "guard, supervisor, engine and two programs"
        victim_of(engine).kill()
        await all_gone(node.run_id, within=_GONE_SECONDS)
        await ends(node.pool, node.run_id, StateType.CRASHED, f"{category}: ")
        assert is_alive(zygote)


async def test_the_first_run_can_be_stopped_while_others_run_on_its_zygote(node: Node) -> None:
    """Ray ends all descendants of a job that it stops; the zygote was one, with all of its runs."""
    async with node.pool.working():
        first = await node.begin("loops", "first")
        first_id = node.run_id
        assert not is_forked(first)
        second = await node.begin("ends_when_permitted", "second", "ran")
        assert is_forked(second)
        zygote = zygote_of(second)
        async with JobsClient(Connection(node.pool.defaults["address"])) as client:
            pid = InfrastructurePid.parse((await node.pool.read(first_id)).infrastructure_pid or "")
            await client.stop(pid.submission_id)
        await ends(node.pool, first_id, StateType.CRASHED, "StoppedOutside")
        await all_gone(first_id, within=_GONE_SECONDS)
        assert is_alive(zygote)
        await node.finish("second")


@pytest.mark.extra
async def test_a_run_goes_on_without_its_zygote(node: Node) -> None:
    async with node.pool.working():
        zygote = await node.warm_up()
        assert is_forked(await node.begin("ends_when_permitted", "second", "ran"))
        zygote.kill()
        await node.finish("second")


@pytest.mark.extra
async def test_a_forked_engine_that_dies_is_reported_in_words(node: Node) -> None:
    async with node.pool.working():
        await node.warm_up()
        run_id = await node.start("dies", "second", how="SIGKILL")
        await ends(node.pool, run_id, StateType.CRASHED, "signal SIGKILL")
        assert (await ended_job(node.pool, run_id)).driver_exit_code == -9
        assert len(traces(node.folder / "second", "on_crashed")) == 1
        await all_gone(run_id, within=_GONE_SECONDS)


@pytest.mark.extra
async def test_a_zygote_that_does_not_answer_is_passed_over(node: Node) -> None:
    """The run starts cold, and only once; what it has sent is not taken for another run later."""
    async with node.pool.working():
        zygote = await node.warm_up()
        zygote.suspend()
        try:
            assert not is_forked(await node.begin("ends_when_permitted", "second", "ran"))
        finally:
            zygote.resume()
        await node.finish("second")
        await wait_until(lambda: not zygote.children(), timeout=10, description="no children")
        assert len(traces(node.folder / "second", "ran")) == 1


async def test_a_zygote_ends_after_idle_seconds(node: Node) -> None:
    async with node.pool.working():
        node.variables |= {"warm_driver_seconds": 5}
        zygote = await node.warm_up()
        await wait_until(lambda: not is_alive(zygote), timeout=10, description="the zygote to end")
        assert zygote.pid not in node.zygotes


@pytest.mark.extra
async def test_warm_drivers_are_switched_off_by_one_variable(node: Node) -> None:
    async with node.pool.working():
        node.variables |= {"warm_driver_seconds": 0}
        before = node.zygotes
        run_id = await node.start("prints", "first")
        await ends(node.pool, run_id, StateType.COMPLETED)
        assert not is_forked(await node.begin("ends_when_permitted", "second", "ran"))
        await node.finish("second")
        assert node.zygotes <= before


@asynccontextmanager
async def node_of_its_own(folder: Path) -> AsyncIterator[tuple[RealRay, Node]]:
    with real_ray() as ray:
        async with new_pool({"address": ray.address}) as pool, pool.working():
            yield ray, Node(pool, Rendezvous(raylet_of(ray.pid).pid), folder, {})


@pytest.mark.extra
async def test_a_zygote_ends_with_its_node_and_few_stay_on_one(
    prefect_settings: None, tmp_path: Path
) -> None:
    async with node_of_its_own(tmp_path) as (ray, node):
        for number in range(5):
            node.variables = {"env": {"TEST": str(number)}}
            await node.warm_up()
        await wait_until(lambda: len(node.zygotes) == 4, timeout=10, description="four zygotes")
        there = [psutil.Process(pid) for pid in node.zygotes]
        raylet_of(ray.pid).kill()
        await wait_until(
            lambda: not any(map(is_alive, there)), timeout=10, description="no zygote left"
        )
