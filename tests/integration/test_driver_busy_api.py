"""A driver waits out an API that has too much to do, restarts or is replaced.

Observed before: one 404 page during a roll-out, or a burst of 429, made the run Crashed as
PrefectApiWrong or FlowNotLoaded.
"""

import subprocess
import time
from pathlib import Path

import anyio.to_thread
import pytest
from aiohttp import web
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.verdict_line import find_verdict
from tests.integration.busy_api import busy_api
from tests.integration.driver_kit import DRIVER_SECONDS, claimed, driver, force, output, traces
from tests.integration.harness import Pool
from tests.waiting import wait_until

# More than Prefect's own client tries again: 5 times after 429 and 503, never after 404 (3.8.8).
_REFUSED = {"429": 8, "503": 8, "404 page": 3}
_ANSWERS = {
    "429": {"status": 429, "headers": {"Retry-After": "0"}, "text": "slow down"},
    "503": {"status": 503, "headers": {"Retry-After": "0"}, "text": "starting"},
    "404 page": {"status": 404, "content_type": "text/html", "text": "<html>no backend</html>"},
}
_PHASES = {
    "claim": ("GET", "/flow_runs/"),
    "history": ("GET", "/flow_run_states/"),
    "states": ("POST", "/set_state"),
    "loading": ("GET", "/deployments/"),
}


# An answer means the same in each phase: all pairs in `make test-extra`.
_HERE = ("loading-404 page",)
_PAIRS = [
    pytest.param(
        *(phase, answer),
        id=f"{phase}-{answer}",
        marks=[] if f"{phase}-{answer}" in _HERE else [pytest.mark.extra],
    )
    for phase in _PHASES
    for answer in _ANSWERS
]


@pytest.mark.parametrize(("phase", "answer"), _PAIRS)
async def test_a_driver_gets_slower_not_dead(
    here: Pool, tmp_path: Path, phase: str, answer: str
) -> None:
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    method, path = _PHASES[phase]
    refused, most = 0, _REFUSED[answer]

    def refuses(request: web.Request) -> web.Response | None:
        nonlocal refused
        if request.method != method or path not in request.path or refused >= most:
            return None
        refused += 1
        return web.Response(**_ANSWERS[answer])  # type: ignore[arg-type]

    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        process = driver(run_id, attempt, api_url=url)
        assert "Nothing to do" not in await output_of(process)
    assert refused == most
    assert len(traces(tmp_path, "ran")) == 1
    assert await here.state(run_id) == StateType.COMPLETED


async def test_a_cancelled_run_is_not_crashed_by_a_404_page(here: Pool, tmp_path: Path) -> None:
    """The driver asks what a SIGTERM means while a proxy has no server behind it."""
    run_id, attempt = await claimed(here, "loops", tmp_path)
    refused, is_rolling_out = 0, False

    def refuses(request: web.Request) -> web.Response | None:
        nonlocal refused
        is_asked = request.method == "GET" and request.path.endswith(f"/flow_runs/{run_id}")
        if not (is_rolling_out and is_asked and refused < 2):
            return None
        refused += 1
        return web.Response(**_ANSWERS["404 page"])  # type: ignore[arg-type]

    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        process = driver(run_id, attempt, api_url=url)
        await wait_until(
            lambda: traces(tmp_path, "pids"), timeout=DRIVER_SECONDS, description="the flow"
        )
        is_rolling_out = True
        await force(here, run_id, StateType.CANCELLING, "Cancelling")
        process.terminate()
        await output_of(process)
    assert refused == 2
    assert await here.state(run_id) == StateType.CANCELLED
    assert len(traces(tmp_path, "on_cancellation")) == 1


async def test_a_run_that_prefect_does_not_know_ends_its_driver_at_once(
    here: Pool, tmp_path: Path
) -> None:
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    await here.client.delete_flow_run(run_id)
    process = driver(run_id, attempt)
    text, _ = process.communicate(timeout=DRIVER_SECONDS / 2)
    assert process.returncode == DriverExit.WRONG_API
    verdict = find_verdict(text, attempt)
    assert verdict is not None
    assert verdict.category is Category.PREFECT_API_WRONG


async def output_of(process: "subprocess.Popen[str]") -> str:
    return await anyio.to_thread.run_sync(output, process)


async def test_the_last_lines_are_sent_however_long_it_takes(here: Pool, tmp_path: Path) -> None:
    """The driver left after 5 s, and the worker does not forward what is marked as sent."""
    run_id, attempt = await claimed(here, "prints", tmp_path)
    refused = 0

    def refuses(request: web.Request) -> web.Response | None:
        nonlocal refused
        if request.method != "POST" or not request.path.endswith("/logs/") or refused:
            return None
        refused += 1
        return web.Response(status=429, headers={"Retry-After": "7"}, text="slow down")

    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        await output_of(driver(run_id, attempt, api_url=url))
    assert refused
    assert "printed, and logged" in await here.logs(run_id)


async def test_a_driver_that_sends_its_last_lines_can_be_stopped(
    here: Pool, tmp_path: Path
) -> None:
    """It must not use up the grace period of the stop."""
    run_id, attempt = await claimed(here, "prints", tmp_path)
    asked = 0

    def refuses(request: web.Request) -> web.Response | None:
        nonlocal asked
        if request.method != "POST" or not request.path.endswith("/logs/"):
            return None
        asked += 1
        return web.Response(status=429, headers={"Retry-After": "60"}, text="slow down")

    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        process = driver(run_id, attempt, api_url=url)
        await here.wait_for(run_id, seconds=DRIVER_SECONDS)
        await wait_until(lambda: asked, timeout=DRIVER_SECONDS, description="the lines")
        begun = time.monotonic()
        process.terminate()
        await output_of(process)
    assert time.monotonic() - begun < 15
    assert await here.state(run_id) == StateType.COMPLETED
