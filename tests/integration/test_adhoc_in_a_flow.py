"""A call inside another flow, in this process."""

import anyio.to_thread
from aiohttp import web
from prefect import flow
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_ray_worker import ray_job
from tests.integration.busy_api import busy_api
from tests.integration.driver_kit import tasks_of
from tests.integration.harness import Pool
from tests.integration.test_adhoc_sending import new_flow, served

__all__ = ["served"]


async def test_call_that_is_refused_leaves_no_task_run_waiting(served: Pool) -> None:
    """The task run shows the call as a subflow; it comes first, and no run would ever move it."""
    bound = ray_job(served.name)(new_flow())
    created: list[str] = []

    def refuses(request: web.Request) -> web.Response | None:
        if request.method != "POST" or not request.path.endswith("/flow_runs/"):
            return None
        created.append(request.path)
        return web.Response(status=422) if len(created) == 2 else None

    @flow
    def caller() -> None:
        bound.submit(b"content")

    async with busy_api(str(PREFECT_API_URL.value()), refuses) as url:
        with temporary_settings({PREFECT_API_URL: url}):
            state = await anyio.to_thread.run_sync(lambda: caller(return_state=True))
    assert len(created) == 2
    assert state.is_failed()
    assert state.state_details.flow_run_id is not None
    (called,) = await tasks_of(served, state.state_details.flow_run_id)
    assert called.state_type == StateType.FAILED
