"""`FlowRuns` against an API in trouble: patient with what passes, and only with that."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from aiohttp import web
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_ray_worker.prefect_api import answers
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from tests.ports import free_port

RUN = uuid4()
# A 404 that is not Prefect's.
INGRESS, OTHER_PROGRAM = -404, -405
FOUND = {"id": str(RUN), "flow_id": str(uuid4()), "name": "a-run"}


@asynccontextmanager
async def api(
    *statuses: int, retry_after: str = "0"
) -> AsyncIterator[tuple[PrefectClient, list[int]]]:
    """An API that answers with these statuses first, and what it has answered so far."""
    left, answered = list(statuses), list[int]()

    async def answer(request: web.Request) -> web.Response:
        if "/flow_runs/" not in request.path:
            return web.json_response("0", status=404)  # versions and tokens, as a client starts
        status = left.pop(0) if left else 200
        answered.append(status)
        if status == INGRESS:
            page = "<html>default backend - 404</html>"
            return web.Response(text=page, status=404, content_type="text/html")
        if status == OTHER_PROGRAM:
            return web.json_response({"detail": "Not Found"}, status=404)
        body = FOUND if status == 200 else {"detail": "no"}
        # The client's own patience comes before ours, and waits as long as it is told.
        return web.json_response(body, status=status, headers={"Retry-After": retry_after})

    app, port = web.Application(), free_port()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        with temporary_settings(
            {PREFECT_API_URL: f"http://127.0.0.1:{port}/api", PREFECT_CLIENT_MAX_RETRIES: 0}
        ):
            async with get_client() as client:
                yield client, answered
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_passes_is_waited_out(status: int) -> None:
    async with api(status, status, status) as (client, answered):
        run = await FlowRuns(client, first_wait=0.02).read(RUN)
        assert run is not None
        assert run.id == RUN
        assert answered == [status] * 3 + [200]


@pytest.mark.parametrize("status", [401, 403, 422])
async def test_what_does_not_pass_is_an_error_at_once(status: int) -> None:
    async with api(status) as (client, answered):
        with pytest.raises(PrefectHTTPStatusError):
            await FlowRuns(client, first_wait=0.02).read(RUN)
        assert answered == [status]


async def test_a_run_that_was_deleted_is_none() -> None:
    async with api(404) as (client, _):
        assert await FlowRuns(client, first_wait=0.02).read(RUN) is None


@pytest.mark.parametrize("status", [INGRESS, OTHER_PROGRAM])
async def test_a_404_that_is_not_prefect_s_does_not_mean_that_a_run_was_deleted(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of an ingress stopped a live job."""
    async with api(status, status) as (client, answered):
        run = await FlowRuns(client, first_wait=0.02).read(RUN)
        assert run is not None
        assert answered == [status, status, 200]
    monkeypatch.setattr(answers, "_RUN_SECONDS", 0.3)
    async with api(*[status] * 50) as (client, answered):
        with pytest.raises(PrefectHTTPStatusError):
            await FlowRuns(client, first_wait=0.02).read(RUN)
        assert len(answered) > 1


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_RUN_SECONDS", 0.3)
    async with api(*[503] * 50) as (client, answered):
        with pytest.raises(PrefectHTTPStatusError):
            await FlowRuns(client, first_wait=0.02).read(RUN)
        assert len(answered) > 1


async def test_api_that_asks_for_a_wait_gets_it() -> None:
    async with api(429, retry_after="1") as (client, answered):
        began = time.monotonic()
        assert await FlowRuns(client, first_wait=0.02).read(RUN) is not None
        assert time.monotonic() - began >= 0.95
        assert answered == [429, 200]
