"""What a call sends to Prefect: limits in front of the API, lost answers, a caller that is killed.

No job runs here: the fake Ray, or nothing, stands for the cluster.
"""

import io
import re
import secrets
import signal
import zipfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio.to_thread
import pytest
from aiohttp import web
from prefect import flow
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State, StateDetails, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Pending

from prefect_ray_worker import ray_job
from prefect_ray_worker.adhoc.calling import run_again
from prefect_ray_worker.bundles.carriers import read_content, read_header
from prefect_ray_worker.bundles.content import load_block, unpack, unpickle
from prefect_ray_worker.errors import BundleMissing, BundleRefused, InvalidConfiguration
from prefect_ray_worker.prefect_api.pool import RunChange, changes_of_runs
from prefect_ray_worker.runs import wake
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.ids import AWAITING_CODE
from tests.fake_ray import FakeRay
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.busy_api import LOST, Refuses, busy_api
from tests.integration.caller_kit import CALLER_SECONDS, Laptop, is_online, online, set_address
from tests.integration.driver_kit import driver, output, present_attempt
from tests.integration.harness import Pool, new_pool
from tests.integration.stage import Stage
from tests.integration.test_bundles import ask
from tests.waiting import wait_until

MIB = 1024 * 1024
STEPS = ("created", "parts", "header", "unscheduled", "scheduled")


def new_flow() -> Any:
    """Return a flow as a notebook defines it: no file of the tests travels with it."""
    namespace: dict[str, Any] = {"__name__": "__main__", "flow": flow}
    exec("@flow\ndef sends(content):\n    return len(content)", namespace)
    return namespace["sends"]


@pytest.fixture
async def served(here: Pool) -> Pool:
    """A pool with a worker that is online and does nothing."""
    await here.client.send_worker_heartbeat(here.name, "elsewhere", 30)
    return here


async def submit(pool: Pool, content: bytes, **options: Any) -> UUID:
    """Call a flow in a thread of this process; return its run."""
    bound = ray_job(pool.name, **options)(new_flow())
    return (await anyio.to_thread.run_sync(bound.submit, content)).flow_run_id


async def runs_of(pool: Pool) -> list[FlowRun]:
    return await Laptop(pool, Path()).runs()


async def arrived(run_id: UUID) -> bytes:
    """Return what the flow of a run would get as its argument."""
    packed = await ask(lambda c: read_content(c, run_id, read_header(c, run_id), load_block))
    async with anyio.TemporaryDirectory() as folder:
        return unpickle(unpack(packed, Path(folder))).parameters["content"]


def over(limit: int) -> Refuses:
    """Refuse requests as a proxy does: those over a limit, and those of an unknown length."""

    def refuses(request: web.Request) -> web.Response | None:
        if request.method in ("POST", "PUT", "PATCH") and request.content_length is None:
            return web.Response(status=411)
        return web.Response(status=413) if (request.content_length or 0) > limit else None

    return refuses


def at_first(answer: Callable[[], web.Response], path: str = "") -> Refuses:
    """Refuse the first request of each kind."""
    seen: Counter[str] = Counter()

    def refuses(request: web.Request) -> web.Response | None:
        kind = f"{request.method} {request.path}"
        seen[kind] += 1
        return answer() if seen[kind] == 1 and path in kind else None

    return refuses


@pytest.mark.parametrize("limit", [MIB, 5 * MIB])
async def test_bundle_of_four_mib_passes_a_proxy_that_takes_one(served: Pool, limit: int) -> None:
    content = secrets.token_bytes(4 * MIB - 10_000)
    async with busy_api(str(PREFECT_API_URL.value()), over(limit)) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            run_id = await submit(served, content)
    assert await arrived(run_id) == content
    (run,) = await runs_of(served)
    assert (run.state_type, run.state_name) == (StateType.SCHEDULED, "Scheduled")


async def test_lower_limit_is_an_error_that_names_it_and_ends_the_run(served: Pool) -> None:
    async with busy_api(str(PREFECT_API_URL.value()), over(100 * 1024)) as url:
        told = pytest.raises(
            BundleRefused, match=r"HTTP 413\)\. Have its administrator allow 1 MiB"
        )
        with temporary_settings({PREFECT_API_URL: url}), told:
            await submit(served, secrets.token_bytes(MIB))
    (run,) = await runs_of(served)
    assert run.state_type == StateType.FAILED
    assert "could not be sent: BundleRefused: What is in front of" in (run.state.message or "")


async def test_busy_api_is_asked_again(served: Pool) -> None:
    """A rate limit answers 429."""
    refuses = at_first(lambda: web.Response(status=429, headers={"Retry-After": "0.1"}))
    async with busy_api(str(PREFECT_API_URL.value()), refuses) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            run_id = await submit(served, b"content")
    (run,) = await runs_of(served)
    assert (run.id, run.state_name) == (run_id, "Scheduled")


async def test_lost_answers_double_nothing(served: Pool) -> None:
    """Prefect's client repeats a request whose answer got lost: two runs were created.

    Lost are those to the creation, to the first part and to the last state.
    """
    content = secrets.token_bytes(MIB)
    lose = at_first(lambda: LOST, "POST /api/flow_runs/")
    async with busy_api(str(PREFECT_API_URL.value()), lose) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            run_id = await submit(served, content)
    (run,) = await runs_of(served)
    assert (run.id, run.state_name) == (run_id, "Scheduled")
    names = [state.name for state in await served.client.read_flow_run_states(run_id)]
    assert sorted(names) == [AWAITING_CODE, "Scheduled"]
    assert await arrived(run_id) == content


@pytest.mark.parametrize("again", [False, True])
async def test_run_that_a_worker_has_taken_is_not_scheduled_again(
    served: Pool, again: bool
) -> None:
    """A worker is quicker than a caller who waits for a lost answer: it would run twice."""
    run_id = await submit(served, b"content") if again else None
    if run_id is not None:
        await served.client.set_flow_run_state(run_id, Completed(), force=True)
    taken: list[UUID] = []

    def refuses(request: web.Request) -> web.Response | None:
        return LOST if request.path.endswith("/set_state") and not taken else None

    async def take(request: web.Request) -> None:
        if request.path.endswith("/set_state") and not taken:
            taken.append(UUID(request.path.split("/")[-2]))
            await served.client.set_flow_run_state(taken[0], Pending())

    async with busy_api(str(PREFECT_API_URL.value()), refuses, after=take) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            if run_id is None:
                run_id = await submit(served, b"content")
            else:
                await anyio.to_thread.run_sync(run_again, run_id)
    assert taken == [run_id]
    assert await served.state(run_id) == StateType.PENDING
    with pytest.raises(InvalidConfiguration, match="only a run that has ended"):
        await anyio.to_thread.run_sync(run_again, run_id)


async def test_run_whose_flow_has_retried_in_its_process_can_run_again(served: Pool) -> None:
    """Its policy says that it waits in a process, and Prefect gives such a run to no worker."""
    run_id = await submit(served, b"content")
    policy = FlowRunPolicy(retries=1, retry_type="in_process")
    await served.client.update_flow_run(run_id, empirical_policy=policy)
    await served.client.set_flow_run_state(run_id, Completed(), force=True)
    await anyio.to_thread.run_sync(run_again, run_id)
    due = await served.client.get_scheduled_flow_runs_for_work_pool(served.name)
    assert [found.flow_run.id for found in due] == [run_id]


async def make_due(pool: Pool, run: FlowRun) -> None:
    """Have the ten minutes pass that a caller has for its preparations."""
    assert run.state is not None
    due: State[Any] = State(
        type=StateType.SCHEDULED,
        name=run.state.name,
        state_details=StateDetails(scheduled_time=run.state.timestamp),
    )
    await pool.client.set_flow_run_state(run.id, due, force=True)


async def test_caller_that_is_killed_leaves_no_slot_taken_and_no_run_stuck(
    stage: Stage, tmp_path: Path
) -> None:
    """Prefect's own way leaves a Pending run, which holds its slot for ever."""
    pool = stage.pool
    await set_address(pool)
    await pool.client.send_worker_heartbeat(pool.name, "elsewhere", 30)
    callers = {step: Laptop(pool, tmp_path / step).start("dies", step) for step in STEPS}
    for process in callers.values():
        said, _ = await anyio.to_thread.run_sync(process.communicate, None, CALLER_SECONDS)
        assert process.returncode == -signal.SIGKILL, said
    runs = {run.parameters["rows"]: run for run in await runs_of(pool)}
    names = [(runs[n].state_type, runs[n].state_name) for n in range(len(STEPS))]
    unsent = (StateType.SCHEDULED, AWAITING_CODE)
    assert names == [unsent] * 4 + [(StateType.SCHEDULED, "Scheduled")]
    async with pool.working():
        await stage.job_of(runs[4].id)
        assert [stage.jobs_of(runs[n].id) for n in range(4)] == [[]] * 4
        for number in range(4):
            await make_due(pool, runs[number])
        for number in range(4):
            await stage.ends(
                runs[number].id, StateType.CRASHED, f"{Category.BUNDLE_MISSING}: The process that"
            )
            assert stage.jobs_of(runs[number].id) == [], "no cluster is asked for that"


async def test_call_adopts_no_orphan_and_joins_no_workers(served: Pool) -> None:
    """Prefect's own way made the laptop a worker, which took over production runs."""
    deployment = await served.deploy("adds")
    orphan = await served.client.create_flow_run_from_deployment(deployment, state=Pending())
    await served.client.update_flow_run_labels(orphan.id, {"prefect.worker.name": "dead"})
    before = await served.read(orphan.id)
    run_id = await submit(served, b"content")
    after = await served.read(orphan.id)
    assert (after.state, after.labels) == (before.state, before.labels)
    workers = await served.client.read_workers_for_work_pool(served.name)
    assert [worker.name for worker in workers] == ["elsewhere"]
    assert await served.state(run_id) == StateType.SCHEDULED


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    value = "token-of-the-cluster-that-only-the-worker-has"
    monkeypatch.setenv("RAY_AUTH_TOKEN", value)
    return value


async def test_caller_asks_ray_nothing_and_the_token_stays_with_the_worker(
    prefect_settings: None, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The laptop reaches a front of the cluster, which counts its requests; the worker another."""
    async with FakeRay() as front, FakeRay(token=token) as ray, new_pool({}) as pool:
        ray.on_submit = RUNS_FOREVER
        monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS", ray.address)
        addresses = ("RAY_ADDRESS", "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS")
        laptop = Laptop(pool, tmp_path / "laptop", dict.fromkeys(addresses, front.address))
        async with online(pool):
            process = laptop.start("waits")
            run = await laptop.run()
            await wait_until(lambda: ray.jobs, timeout=30, description="the job")
            process.send_signal(signal.SIGINT)
            (job,) = ray.jobs.values()
            job.set("STOPPED")
            said, _ = await anyio.to_thread.run_sync(process.communicate, None, CALLER_SECONDS)
        assert front.requests == []
        shown = {headers.get("authorization") for headers in ray.requests.headers}
        assert shown <= {f"Bearer {token}", None}
        assert token not in str(job.body)
        inputs = await pool.client.filter_flow_run_input(run.id, "ray-", 100, set())
        logs = await pool.logs(run.id)
        found = await pool.read(run.id)
        assert token not in f"{said}{inputs}{logs}{found.model_dump_json()}"


async def test_large_bundle_goes_to_the_store_of_a_cluster_that_the_caller_reaches(
    served: Pool, ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request, and none for a small one."""
    content = secrets.token_bytes(5 * MIB)
    run_id = await submit(served, b"small", address=ray.address)
    assert ray.requests == []
    run_id = await submit(
        served, content, address=ray.address, runtime_env={"env_vars": {"A": "1"}}
    )
    assert [method for method, _ in ray.requests] == ["PUT"]
    ((name, package),) = ray.packages.items()
    run = await served.read(run_id)
    assert (run.job_variables or {})["runtime_env"] == {
        "env_vars": {"A": "1"}, "py_modules": [f"gcs://{name}"],
    }  # fmt: skip
    header = await ask(lambda c: read_header(c, run_id))
    assert header.carrier == "cluster"
    with pytest.raises(BundleMissing, match="in none of the py_modules"):
        await arrived(run_id)
    with zipfile.ZipFile(io.BytesIO(package)) as archive:  # as Ray does on the node
        archive.extractall(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert await arrived(run_id) == content


async def test_large_bundle_without_a_way_names_the_ways_out(served: Pool, ray: FakeRay) -> None:
    content = secrets.token_bytes(5 * MIB)
    with pytest.raises(BundleRefused, match="this process knows no address of the cluster"):
        await submit(served, content)
    await ray.stop_listening()
    with pytest.raises(BundleRefused, match=r"did not take it: .* The largest files: the flow"):
        await submit(served, content, address=ray.address)
    assert await runs_of(served) == [], "nothing is left in Prefect"


async def test_worker_is_not_woken_by_a_run_whose_code_is_being_sent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look for it found nothing, and the next one came a second later."""
    await set_address(stage.pool)
    counting = anyio.Event()
    heard: list[RunChange | None] = []

    async def changes(pool_id: UUID) -> AsyncGenerator[RunChange | None, None]:
        await counting.wait()
        async for change in changes_of_runs(pool_id):
            heard.append(change)
            yield change

    monkeypatch.setattr(wake, "changes_of_runs", changes)
    async with stage.pool.working() as (worker,):
        await is_online(stage.pool)
        looks: list[float] = []
        look = worker.get_and_submit_flow_runs

        async def counted() -> list[FlowRun]:
            looks.append(anyio.current_time())
            return await look()

        worker._wake._look = counted
        counting.set()
        await wait_until(lambda: looks, description="the look after the connection")
        looks.clear()
        preparing: State[Any] = State(
            type=StateType.SCHEDULED,
            name=AWAITING_CODE,
            state_details=StateDetails(scheduled_time=datetime.now(UTC) + timedelta(minutes=10)),
        )
        await stage.pool.client.create_flow_run(
            new_flow(), state=preparing, work_pool_name=stage.pool.name
        )
        await anyio.sleep(1.5)  # its event has arrived
        assert looks == [], heard
        run_id = await submit(stage.pool, b"content")
        await stage.job_of(run_id)
    assert len(looks) == 1, heard


def noted(requests: list[str]) -> Refuses:
    """Refuse nothing, and note the requests, ids left out."""

    def refuses(request: web.Request) -> None:
        path = re.sub(r"[0-9a-f-]{36}", "{id}", request.path.removeprefix("/api"))
        requests.append(f"{request.method} {re.sub(r'/ray-[0-9a-f]{8}', '/{pool}', path)}")

    return refuses


async def test_requests_of_a_call_and_of_its_driver_before_user_code(served: Pool) -> None:
    """Each takes a tenth of a second with Prefect Cloud."""
    of_call: list[str] = []
    async with busy_api(str(PREFECT_API_URL.value()), noted(of_call)) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            run_id = await submit(served, b"content")
    # Prefect's client asks for its token once, before it first changes something (3.8.8).
    of_call = [request for request in of_call if request != "GET /csrf-token"]
    # The first three go out side by side.
    assert sorted(of_call[:3]) == [
        "GET /admin/storage", "GET /work_pools/{pool}", "POST /work_pools/{pool}/workers/filter",
    ]  # fmt: skip
    assert of_call[3:] == [
        "POST /flows/", "POST /flow_runs/", "POST /flow_runs/{id}/input",
        "POST /flow_runs/{id}/set_state",
    ]  # fmt: skip
    await served.client.set_flow_run_state(run_id, Pending())
    of_driver: list[str] = []
    async with busy_api(str(PREFECT_API_URL.value()), noted(of_driver)) as url:
        process = driver(run_id, await present_attempt(served, run_id), api_url=url)
        await anyio.to_thread.run_sync(output, process)
    states = [n for n, request in enumerate(of_driver) if request.endswith("/set_state")]
    of_flow = [request for request in of_driver[: states[1] + 1] if "/logs" not in request]
    assert of_flow[:5] == [
        "GET /flow_runs/{id}", "GET /flow_run_states/", "GET /csrf-token",
        "POST /flow_runs/{id}/set_state", "GET /flow_runs/{id}/input/ray-bundle",
    ]  # fmt: skip
    assert len(of_flow) <= 12, "the rest are of Prefect's engine, and one is our guard's"
