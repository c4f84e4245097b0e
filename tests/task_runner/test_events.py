"""Events, assets and logs of tasks: what Prefect's API has of them, and what it relates them to."""

import time
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, get_run_logger, tags, task
from prefect.assets import materialize
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import Event, emit_event
from prefect.states import Completed, Pending
from prefect.utilities.engine import emit_task_run_state_change_event

from prefect_ray_worker import RayTaskRunner
from prefect_ray_worker.task_runner import event_window, with_run_context
from prefect_ray_worker.task_runner.telemetry import Telemetry
from tests.integration.harness import settings_of
from tests.shared import shared_prefect_server
from tests.task_runner.api import logs, task_runs, wait_for_log
from tests.task_runner.tasks import add, in_flow
from tests.task_runner.test_losses import run_id

pytestmark = pytest.mark.ray

SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def settings_with_events(
    prefect_settings: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The other tests use a server that keeps no events: each costs it more than the task."""
    home = tmp_path_factory.mktemp("home")
    with (
        shared_prefect_server(with_events=True) as server,
        settings_of(server.api_url, home, PREFECT_LOGGING_TO_API_BATCH_INTERVAL="0.2"),
    ):
        yield


def events(flow_run_id: UUID, count: int, prefix: str) -> list[dict[str, Any]]:
    """Wait until the API has this many events of a kind that are related to a flow run."""
    related = {"id": [f"prefect.flow-run.{flow_run_id}"]}
    query = {"filter": {"event": {"prefix": [prefix]}, "related": related}, "limit": 50}
    deadline = time.monotonic() + SECONDS
    with get_client(sync_client=True) as client:
        while True:
            found = client.request("POST", "/events/filter", json=query).json()["events"]
            if len(found) >= count:
                return sorted(
                    found, key=lambda e: (e["event"], e["resource"]["prefect.resource.id"])
                )
            assert time.monotonic() < deadline, [e["event"] for e in found]
            time.sleep(0.3)


@materialize("s3://bucket/raw")
def makes_raw() -> int:
    return 1


@materialize("s3://bucket/table", asset_deps=["postgres://db/source"])
def makes_table(raw: int) -> int:
    return raw


@materialize("s3://bucket/report")
def makes_report() -> None: ...


@task
def passes_on(value: int) -> int:
    return value


def test_assets_are_materialized_and_know_their_upstream(runner: RayTaskRunner) -> None:
    def body() -> Any:
        table = makes_table.submit(passes_on.submit(makes_raw.submit()))
        makes_report.submit(wait_for=[table]).wait()
        return run_id()

    found = events(in_flow(runner, body), 6, "prefect.asset.")
    names = [
        (e["event"].removeprefix("prefect.asset."), e["resource"]["prefect.resource.id"])
        for e in found
    ]
    assert names == [
        ("materialization.succeeded", "s3://bucket/raw"),
        ("materialization.succeeded", "s3://bucket/report"),
        ("materialization.succeeded", "s3://bucket/table"),
        ("referenced", "postgres://db/source"),
        ("referenced", "s3://bucket/raw"),
        ("referenced", "s3://bucket/table"),
    ]
    upstream = {r["prefect.resource.id"] for r in found[2]["related"]}
    assert {"s3://bucket/raw", "postgres://db/source"} <= upstream


def test_events_are_related_as_prefect_relates_them(runner: RayTaskRunner) -> None:
    @task(name="emits")
    def emits() -> None:
        emit_event("user.event", resource={"prefect.resource.id": "mine"})

    def body() -> Any:
        with tags("green"):
            emits.submit().wait()
        return run_id()

    flow_run_id = in_flow(runner, body, flow_run_name="the-run")
    (event,) = events(flow_run_id, 1, "user.event")
    (run,) = task_runs(flow_run_id, 1)
    related = {r["prefect.resource.role"]: r["prefect.resource.id"] for r in event["related"]}
    assert related["flow-run"] == f"prefect.flow-run.{flow_run_id}"
    assert related["task-run"] == f"prefect.task-run.{run.id}"
    assert related["tag"] == "prefect.tag.green"
    assert related["flow"].startswith("prefect.flow.")


def test_tasks_belong_to_the_flow_that_a_task_calls(runner: RayTaskRunner) -> None:
    @task
    def inner() -> None: ...

    @flow(name="sub")
    def sub() -> UUID:
        inner()
        inner.submit().wait()
        emit_event("user.sub", resource={"prefect.resource.id": "mine"})
        return run_id()

    @task
    def outer() -> UUID:
        return sub()

    flow_run_id, sub_id = in_flow(runner, lambda: (run_id(), outer.submit().result()))
    assert len(task_runs(sub_id, 2)) == 2
    # Prefect adds one for the flow run itself.
    assert [run.name.partition("-")[0] for run in task_runs(flow_run_id, 2)] == ["outer", "sub"]
    (event,) = events(sub_id, 1, "user.sub")
    names = {r["prefect.resource.role"]: r.get("prefect.resource.name") for r in event["related"]}
    assert names["flow"] == "sub"


def test_states_of_a_run_come_in_order(runner: RayTaskRunner) -> None:
    def body() -> Any:
        passes_on.submit(1).wait()
        return run_id()

    found = events(in_flow(runner, body), 3, "prefect.task-run.")
    by_time = sorted(found, key=lambda e: e["occurred"])
    assert [e["event"].rpartition(".")[2] for e in by_time] == ["Pending", "Running", "Completed"]


def test_task_processes_open_no_websocket(runner: RayTaskRunner) -> None:
    @task
    def senders() -> list[str]:
        import threading

        from prefect.events.worker import EventsWorker

        get_run_logger().info("said")
        emit_event("user.other", resource={"prefect.resource.id": "mine"})
        # Prefect keeps its services of all kinds in one place.
        kinds = [type(service).__name__ for service in EventsWorker._instances.values()]
        threads = [t.name for t in threading.enumerate()]
        return [name for name in (*kinds, *threads) if "EventsW" in name or "APILog" in name]

    assert in_flow(runner, lambda: senders.submit().result()) == []


def test_functions_of_rays_have_the_run_around_them(runner: RayTaskRunner) -> None:
    def crunch(number: int) -> tuple[int, Any]:
        get_run_logger().info("crunching %s", number)
        return number**2, run_id()

    @task
    def crunches() -> list[tuple[int, Any]]:
        import ray

        remote = ray.remote(with_run_context(crunch))
        return ray.get([remote.remote(i) for i in range(3)])

    def body() -> Any:
        import ray

        from_flow = ray.get(ray.remote(with_run_context(crunch)).remote(7))
        return run_id(), [*crunches.submit().result(), from_flow]

    flow_run_id, results = in_flow(runner, body)
    assert results == [(n, flow_run_id) for n in (0, 1, 4, 49)]
    # No waiting: they are there when the function has returned.
    said = logs(flow_run_id)
    assert {f"crunching {i}" for i in (0, 1, 2, 7)} <= set(said)


def test_events_of_a_function_of_rays_belong_to_the_run_around_it(runner: RayTaskRunner) -> None:
    """They belonged to none, or to the run whose task the process had before."""

    def calls() -> None:
        emit_event("user.function", resource={"prefect.resource.id": "mine"})
        passes_on(1)

    def body() -> Any:
        import ray

        ray.get(ray.remote(with_run_context(calls)).remote())
        return run_id()

    first, second = in_flow(runner, body), in_flow(runner, body)
    for flow_run_id in (first, second):
        (event,) = events(flow_run_id, 1, "user.function")
        roles = {r["prefect.resource.role"] for r in event["related"]}
        assert roles == {"flow-run", "flow"}
        assert len(task_runs(flow_run_id, 1)) == 1


def test_a_process_that_a_task_forks_sends_its_own_events_and_logs(runner: RayTaskRunner) -> None:
    """Its copy of the task's sender has no thread."""

    @task
    def forks() -> None:
        def child() -> None:
            get_run_logger().info("said by a child")
            emit_event("user.child", resource={"prefect.resource.id": "mine"})

        process = get_context("fork").Process(target=child)
        process.start()
        process.join(SECONDS)

    flow_run_id, _ = in_flow(runner, lambda: (run_id(), forks.submit().result()))
    assert len(events(flow_run_id, 1, "user.child")) == 1
    wait_for_log(flow_run_id, "said by a child")


def test_a_function_of_rays_gives_its_cpus_to_the_task_it_waits_for(runner: RayTaskRunner) -> None:
    """It waited for ever, as tasks did not."""

    def submits() -> int:
        return add.submit(1).result()

    def body() -> Any:
        import ray

        all_cpus = ray.remote(num_cpus=4)(with_run_context(submits))
        return ray.get(all_cpus.remote(), timeout=60)

    assert in_flow(runner, body) == 2


def test_the_api_shows_when_it_has_recorded_the_events_of_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The contract of `EventWindow`: otherwise it waits, and says that nothing is recorded."""
    monkeypatch.setattr(event_window, "_MOST", 50)
    monkeypatch.setattr("prefect_ray_worker.task_runner.telemetry._BATCH", 20)
    sent = [state_change(number) for number in range(200)]
    box = Telemetry()
    box.put(events=[event.model_dump_json().encode() for event in sent])
    assert box.flush(SECONDS / 2, patiently=True)
    with get_client(sync_client=True) as client:
        known = client.read_task_runs(task_run_filter=of_ids(sent[:150]), limit=200)
    assert len(known) == 150  # the others are on the way


def of_ids(sent: list[Event]) -> TaskRunFilter:
    ids = [UUID(e.resource.id.removeprefix("prefect.task-run.")) for e in sent]
    return TaskRunFilter(id=TaskRunFilterId(any_=ids))


def state_change(number: int) -> Event:
    """Return what Prefect's engine emits at a task's end."""
    state: State[Any] = Completed()
    run = TaskRun(id=uuid4(), name="t", task_key="t", dynamic_key=str(number), state=state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "prefect.utilities.engine.emit_event",
            lambda follows=None, **values: Event(**values),
        )
        event = emit_task_run_state_change_event(run, Pending(), state)
    assert event is not None
    return event
