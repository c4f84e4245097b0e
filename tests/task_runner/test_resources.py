"""`remote_options`: what tasks ask of Ray, and what is said where Ray cannot give it."""

import os
from typing import Any

import pytest
from prefect import flow, get_run_logger, task

from prefect_ray_worker import RayTaskRunner, remote_options
from tests.task_runner.api import logs, wait_for_log
from tests.task_runner.tasks import add, in_flow, pid
from tests.task_runner.test_losses import run_id

pytestmark = pytest.mark.ray


@task
def given() -> dict[str, float]:
    """Return what Ray has given this task."""
    import ray

    return ray.get_runtime_context().get_assigned_resources()


@remote_options(num_cpus=2, resources={"seat": 1})
@task
def seated() -> dict[str, float]:
    return given.fn()


@task
@remote_options(num_gpus=1, num_cpus=0)
def on_gpu() -> tuple[int, list[str]]:
    import ray

    return os.getpid(), ray.get_runtime_context().get_accelerator_ids()["GPU"]


def test_a_task_asks_for_a_cpu_by_default(runner: RayTaskRunner) -> None:
    assert in_flow(runner, lambda: given.submit().result()) == {"CPU": 1}


def test_blocks_win_over_decorators_and_inner_over_outer(runner: RayTaskRunner) -> None:
    def body() -> Any:
        own = seated.submit()
        renamed = seated.with_options(name="other").submit()
        with remote_options(num_cpus=3, resources={}):
            block = [seated.submit(), given.submit()]
            with remote_options(num_cpus=0.5):
                inner = given.submit()
            outer = given.submit()
        return [f.result() for f in (own, renamed, *block, inner, outer)]

    seat, three = {"CPU": 2, "seat": 1}, {"CPU": 3}
    assert in_flow(runner, body) == [seat, seat, three, three, {"CPU": 0.5}, three]


def test_nested_submits_inherit_blocks_and_not_decorators(runner: RayTaskRunner) -> None:
    @task
    def outer() -> list[dict[str, float]]:
        return [given.submit().result(), seated.submit().result()]

    @remote_options(num_cpus=0.25)
    @task
    def decorated() -> dict[str, float]:
        return given.submit().result()

    def body() -> Any:
        with remote_options(num_cpus=0.5):
            block = outer.submit()
        return block.result(), decorated.submit().result()

    assert in_flow(runner, body) == ([{"CPU": 0.5}, {"CPU": 2, "seat": 1}], {"CPU": 1})


def test_a_gpu_task_has_a_process_of_its_own_unless_told_otherwise(runner: RayTaskRunner) -> None:
    def body() -> Any:
        alone = [on_gpu.submit().result() for _ in range(2)]
        with remote_options(max_calls=0):
            kept = [on_gpu.submit().result() for _ in range(2)]
        return alone, kept

    alone, kept = in_flow(runner, body)
    assert all(len(gpus) == 1 for _, gpus in (*alone, *kept))
    assert len({process for process, _ in alone}) == 2
    assert len({process for process, _ in kept}) == 1


def test_nothing_is_lost_where_a_process_ends_with_its_task(runner: RayTaskRunner) -> None:
    ids: list[Any] = []

    @task
    def last_words() -> None:
        get_run_logger().info("last words")

    def body() -> Any:
        ids.append(run_id())
        with remote_options(max_calls=1):
            processes = [pid.submit().result() for _ in range(2)]
            last_words.submit().wait()
        return len(set(processes))

    assert in_flow(runner, body) == 2
    assert "last words" in logs(ids[0])


def test_strategies_and_labels_are_rays(runner: RayTaskRunner) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    strategies: list[dict[str, Any]] = [
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)},
        {"label_selector": {"zone": "in(a, b)"}},
        {"memory": 10_000_000},
        {"runtime_env": {"env_vars": {"COLOUR": "green"}}},
    ]

    @task
    def arrived() -> tuple[str, float, str]:
        context = ray.get_runtime_context()
        memory = context.get_assigned_resources().get("memory", 0)
        return context.get_node_id(), memory, os.environ.get("COLOUR", "none")

    def body() -> Any:
        said: list[Any] = []
        for options in strategies:
            with remote_options(**options):
                said.append(arrived.submit().result())
        return said

    plain = (here, 0, "none")
    memory, colour = (here, 10_000_000, "none"), (here, 0, "green")
    assert in_flow(runner, body) == [plain, plain, plain, memory, colour]


def test_an_affinity_to_a_node_that_has_gone_is_a_crash_with_the_reason(
    runner: RayTaskRunner,
) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # An id that ends in `ff` throughout means none to Ray.
    gone = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)

    def body() -> Any:
        with remote_options(scheduling_strategy=gone):
            state = add.submit(1, return_state=True)
        return state.name, state.message

    name, message = in_flow(runner, body)
    assert name == "Crashed"
    assert "Ray can place the task nowhere" in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_cpu": 1}, "num_cpu"),
        ({"num_cpus": -1}, "num_cpus"),
        ({"resources": {"CPU": 1}}, "CPU"),
        ({"label_selector": {"zone": "not, valid"}}, "label"),
        ({"scheduling_strategy": "SOMEWHERE"}, "SOMEWHERE"),
    ],
)
def test_a_wrong_option_fails_at_the_submit(
    runner: RayTaskRunner, options: dict[str, Any], said: str
) -> None:
    def body() -> None:
        with remote_options(**options), pytest.raises(ValueError, match="remote_options") as caught:
            add.submit(1)
        assert said in str(caught.value)

    in_flow(runner, body)


def test_options_that_the_runner_needs_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="return a tuple instead"):
        remote_options(num_returns=2)
    with pytest.raises(ValueError, match="task_run_name"):
        remote_options(name="mine")
    with pytest.raises(TypeError, match="decorates a task, not a flow"):
        remote_options(num_cpus=1)(flow(lambda: None, name="a-flow"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_gpus": 16}, "GPU 16 (most on one node: 2)"),
        pytest.param(
            {"resources": {"forklift": 1}},
            "forklift 1 (most on one node: 0)",
            marks=pytest.mark.extra,
        ),
        pytest.param(
            {"label_selector": {"zone": "b"}}, "a node labelled zone=b", marks=pytest.mark.extra
        ),
    ],
)
def test_what_no_node_can_run_is_said_on_the_run(
    runner: RayTaskRunner, options: dict[str, Any], said: str
) -> None:
    ids: list[Any] = []

    def body() -> None:
        ids.append(run_id())
        with remote_options(**options):
            futures = add.map([1, 2])
        raise RuntimeError(f"{len(futures)} tasks that would wait for ever")

    with pytest.raises(RuntimeError, match="wait for ever"):
        in_flow(runner, body)
    wait_for_log(ids[0], said)
    warnings = [line for line in logs(ids[0]) if "No node of the Ray cluster can run" in line]
    assert len(warnings) == 1
