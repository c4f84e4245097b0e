"""A Prefect API that is busy, or being rolled out: the worker gets slower, not dead."""

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from aiohttp import web
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_ray_worker.runs.recovery.labels import Worker, claimed_by
from prefect_ray_worker.shared.ids import attempt_name
from prefect_ray_worker.worker import RayWorker
from tests.integration.busy_api import busy_api
from tests.integration.stage import Stage
from tests.integration.test_recovery import claimed_run
from tests.integration.worker_process import worker_process
from tests.ports import free_port
from tests.waiting import wait_until


class Proxy:
    """Hands requests on to the Prefect server, or answers most of them itself.

    Attributes:
        refusal: What nine of ten requests are answered with; None to hand all on.
        refused: How many were.
    """

    def __init__(self, target: str) -> None:
        self.refusal: web.Response | None = None
        self.refused = 0
        self._target = target.removesuffix("/api")

    async def handle(self, request: web.Request) -> web.Response:
        if self.refusal is not None and random.random() < 0.9:
            self.refused += 1
            text, headers = self.refusal.text, self.refusal.headers
            return web.Response(text=text, status=self.refusal.status, headers=headers)
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.request(
                request.method,
                f"{self._target}{request.path_qs}",
                content=await request.read(),
                headers={"Content-Type": request.headers.get("Content-Type", "")},
            )
        kind = answer.headers.get("Content-Type", "text/plain").split(";")[0]
        return web.Response(body=answer.content, status=answer.status_code, content_type=kind)


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[tuple[Proxy, str]]:
    proxy, port = Proxy(target), free_port()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield proxy, f"http://127.0.0.1:{port}/api"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "text", "headers"),
    [
        (429, "slow down", {"Retry-After": "1"}),
        pytest.param(404, "<html>no such host</html>", {}, marks=pytest.mark.extra),
    ],
)
async def test_worker_outlives_an_api_that_refuses_nine_of_ten_requests(
    prefect_settings: None, tmp_path: Path, status: int, text: str, headers: dict[str, str]
) -> None:
    """A burst of 429 ended the worker's process in 15 s, as did the 404 of a roll-out."""
    template = RayWorker.get_default_base_job_template()
    name = f"busy-{uuid4().hex[:8]}"
    async with get_client() as client, proxied(PREFECT_API_URL.value()) as (proxy, url):
        await client.create_work_pool(
            WorkPoolCreate(name=name, type="ray", base_job_template=template)
        )

        async def last_heartbeat() -> float:
            workers = await client.read_workers_for_work_pool(name)
            beats = [w.last_heartbeat_time for w in workers if w.last_heartbeat_time]
            return max((beat.timestamp() for beat in beats), default=0.0)

        env = {
            "PREFECT_API_URL": url,
            "PREFECT_CLIENT_MAX_RETRIES": "0",
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "2",
        }
        with worker_process(name, tmp_path / "home", env=env) as process:
            await wait_until(last_heartbeat, timeout=60, description="the worker to be online")
            proxy.refusal = web.Response(text=text, status=status, headers=headers)
            await wait_until(lambda: proxy.refused >= 12, timeout=60, description="refusals")
            await anyio.sleep(5)
            assert process.poll() is None, (tmp_path / "home" / "worker.log").read_text()[-3000:]
            proxy.refusal = None
            before = await last_heartbeat()

            async def beats_again() -> bool:
                return await last_heartbeat() > before

            await wait_until(beats_again, timeout=60, description="the next heartbeat")
            assert process.poll() is None


async def test_errors_around_a_submission_cost_a_run_nothing(stage: Stage) -> None:
    """A 500 for the deployment ended the worker; a proxy's 404 cancelled the run.

    A 500 a moment later crashed it.
    """
    refusals = {
        "GET /api/deployments/ID": [(500, "oops"), (404, "<html>no such host</html>")],
        "GET /api/flows/ID": [(500, "oops")],
        "PATCH /api/flow_runs/ID/labels": [(500, "oops")],
    }

    def refuses(request: web.Request) -> web.Response | None:
        asked = re.sub(r"[0-9a-f-]{36}", "ID", f"{request.method} {request.path}")
        if not (left := refusals.get(asked)):
            return None
        status, text = left.pop(0)
        return web.Response(status=status, text=text)

    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            async with stage.pool.working(limit=1):
                run_id, job = await stage.running()
                job.set("FAILED", driver_exit_code=7)
                await stage.ends(run_id, StateType.CRASHED, "exit code 7")
    assert not any(refusals.values()), refusals


async def test_run_that_ended_while_the_api_was_away_is_not_submitted(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The claimed run was Failed by an automation, then Submitting, and ran."""
    changed: list[UUID] = []
    held: list[bool] = []

    async def change(request: web.Request) -> None:
        if request.method == "PATCH" and request.path.endswith("/labels") and not changed:
            changed.append(UUID(request.path.split("/")[-2]))
            held.append(worker._followed.has_in_hand(changed[0]))
            await stage.play(changed[0], StateType.FAILED)

    async with busy_api(PREFECT_API_URL.value(), lambda _: None, after=change) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            async with stage.pool.working(limit=1) as (worker,):
                run_id = await stage.start()
                await wait_until(
                    lambda: "is not submitted by this worker" in caplog.text,
                    timeout=20,
                    description="the run to be given up",
                )
    assert await stage.pool.state(run_id) == StateType.FAILED
    assert not stage.ray.jobs
    assert held == [True], "this worker's own look would have taken the run for nobody's"


async def test_claim_that_comes_after_the_end_of_the_run_leaves_it_ended(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's client sends the claim again after a 503, and the server grants it: the run ran."""
    refused: list[UUID] = []

    def refuses(request: web.Request) -> web.Response | None:
        if not request.path.endswith("/set_state") or refused:
            return None
        refused.append(UUID(request.path.split("/")[-2]))
        return web.Response(status=503, headers={"Retry-After": "1"})

    async def told() -> bool:
        return "is not submitted by this worker" in caplog.text

    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            async with stage.pool.working():
                run_id = await stage.start()
                await wait_until(lambda: refused, timeout=20, description="a claim")
                await stage.play(run_id, StateType.FAILED, message="by an automation")
                await wait_until(told, timeout=20, description="the run to be given up")
                await stage.ends(run_id, StateType.FAILED, "by an automation")
    states = await stage.pool.client.read_flow_run_states(run_id)
    assert [state.name for state in states] == ["Scheduled", "Failed", "Pending", "Failed"]
    assert not stage.ray.jobs


async def test_run_that_another_worker_labels_meanwhile_stays_its_own(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The late worker wrote its own label over it, and submitted the job to its own Ray."""
    labels: dict[str, str] = {}

    async def change(request: web.Request) -> None:
        if request.method == "PATCH" and request.path.endswith("/labels") and not labels:
            run_id = UUID(request.path.split("/")[-2])
            claim = (await stage.pool.client.read_flow_run(run_id)).state_id
            assert claim is not None
            labels.update(claimed_by(Worker("other", "0123456789ab"), attempt_name(claim)))
            await stage.pool.client.update_flow_run_labels(run_id, dict(labels))

    async with busy_api(PREFECT_API_URL.value(), lambda _: None, after=change) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            async with stage.pool.working():
                run_id = await stage.start()
                await wait_until(
                    lambda: "another worker has taken it over" in caplog.text,
                    timeout=20,
                    description="the run to be given up",
                )
    assert labels.items() <= (await stage.pool.read(run_id)).labels.items()
    assert not stage.ray.jobs


async def test_run_that_waits_for_a_request_that_always_fails_can_be_cancelled(
    stage: Stage,
) -> None:
    """It was silent for an hour, and then Cancelling for ever."""

    def refuses(request: web.Request) -> web.Response | None:
        is_broken = request.method == "GET" and "/api/flows/" in request.path
        return web.Response(status=500, text="oops") if is_broken else None

    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            async with stage.pool.working(limit=1) as (worker,):
                run_id = await stage.start()
                await stage.pool.wait_for_log(run_id, "waits for the Prefect API")
                await stage.pool.cancel(run_id)
                await stage.ends(run_id, StateType.CANCELLED, "before the run was submitted")
                await wait_until(
                    lambda: not worker._followed.has_in_hand(run_id),
                    timeout=10,
                    description="the slot to be free",
                )
    assert not stage.ray.jobs


async def test_cancelled_run_whose_configuration_cannot_be_read_is_settled(stage: Stage) -> None:
    """Its worker died before it had submitted anything; the others failed for ever."""
    run_id = await claimed_run(stage, {"prefect.worker.name": "dead"})
    await stage.pool.cancel(run_id)

    def refuses(request: web.Request) -> web.Response | None:
        is_broken = request.method == "GET" and "/api/flows/" in request.path
        return web.Response(status=500, text="oops") if is_broken else None

    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            async with stage.heir():
                await stage.ends(run_id, StateType.CANCELLED, "before the run was submitted")
