"""Nodes that go, and nodes that run out of memory."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow, task
from prefect.exceptions import CrashedRun

from prefect_ray_worker import RayTaskRunner, remote_options
from tests.real_ray import RealRay
from tests.task_runner.api import states, task_runs
from tests.task_runner.nodes import kill, second_node
from tests.task_runner.tasks import add, length
from tests.task_runner.test_losses import run_id

pytestmark = [pytest.mark.ray, pytest.mark.extra, pytest.mark.timeout(300)]

FOREVER = 200


@task
def sleeps(folder: Path) -> None:
    (folder / "begun").touch()
    time.sleep(FOREVER)


@task
def large() -> bytes:
    return b"x" * 3_000_000


@task
def large_on_second_try(folder: Path) -> bytes:
    with (folder / "tries").open("a") as file:
        file.write(".")
    if len((folder / "tries").read_text()) == 1:
        time.sleep(FOREVER)
    return b"second"


@task
def takes_memory(folder: Path) -> int:
    with (folder / "tries").open("a") as file:
        file.write(".")
    taken = []
    for _ in range(100):
        taken.append(bytearray(b"x" * 100_000_000))
        time.sleep(0.03)
    return len(taken)


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_node_that_goes_crashes_its_tasks_and_no_others(
    cluster: RealRay, runner: RayTaskRunner, tmp_path: Path
) -> None:
    ids: list[Any] = []

    @flow(task_runner=runner)
    def loses_a_node() -> Any:
        ids.append(run_id())
        with second_node(cluster, "gone") as node:
            with remote_options(resources={"gone": 0.1}):
                on_node = sleeps.submit(tmp_path)
                result = large.submit()
            result.wait()
            await_file(tmp_path / "begun")
            kill(node)
            on_node.wait()
            dependant = length.submit(result)
            dependant.wait()
            with pytest.raises(CrashedRun, match="lost with its node"):
                result.result()
            return on_node.state, dependant.state, add.submit(1).result()

    on_node, dependant, other = loses_a_node()
    assert on_node.name == "Crashed"
    assert "node" in on_node.message
    assert dependant.name == "Crashed"
    assert "lost with its node" in dependant.message
    assert other == 2
    assert states(ids[0], 4) == ["Completed", "Completed", "Crashed", "Crashed"]


def test_infra_retries_go_to_another_node(
    cluster: RealRay, joined: RealRay, tmp_path: Path
) -> None:
    @flow(task_runner=RayTaskRunner(infra_retries=1))
    def loses_a_node() -> Any:
        with second_node(cluster, "leaves") as node:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            there = next(n for n in __import__("ray").nodes() if "leaves" in n["Resources"])
            strategy = NodeAffinitySchedulingStrategy(there["NodeID"], soft=True)
            with remote_options(scheduling_strategy=strategy):
                future = large_on_second_try.submit(tmp_path)
            await_file(tmp_path / "tries")
            kill(node)
            return future.result()

    assert loses_a_node() == b"second"


def test_a_task_that_takes_too_much_memory_is_a_crash_with_the_reason(
    cluster: RealRay, runner: RayTaskRunner, tmp_path: Path
) -> None:
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 1_500_000_000) / memory.total
    if limit > 0.9:
        pytest.skip("this machine has no memory to spare")
    env = {
        "RAY_memory_usage_threshold": f"{limit:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    ids: list[Any] = []

    @flow(task_runner=runner)
    def runs_out() -> Any:
        ids.append(run_id())
        with (
            second_node(cluster, "small", env=env),
            remote_options(resources={"small": 0.1}),
        ):
            return takes_memory.submit(tmp_path).result()

    with pytest.raises(CrashedRun, match="ran out of memory"):
        runs_out()
    (run,) = task_runs(ids[0], 1)
    assert run.state_name == "Crashed"
    # Ray would have gone on for ever.
    assert (tmp_path / "tries").read_text() == "."
