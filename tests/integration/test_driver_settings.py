"""Prefect settings that cannot work on a node: the driver names them, or does without."""

import socket
from pathlib import Path

import anyio.to_thread
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.verdict_line import find_verdict
from tests.integration.driver_kit import DRIVER_SECONDS, claimed, driver, output, traces
from tests.integration.harness import Pool


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PREFECT_API_URL", "", "PREFECT_API_URL"),
    ],
)
async def test_a_driver_that_cannot_start_says_which_setting(
    here: Pool, tmp_path: Path, name: str, value: str, says: str
) -> None:
    """Observed before: exit code 1 and a FileNotFoundError without the path."""
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    process = driver(run_id, attempt, **{name: value})
    text, _ = process.communicate(timeout=DRIVER_SECONDS)
    verdict = find_verdict(text, attempt)
    assert verdict is not None, text
    assert process.returncode == DriverExit.BAD_SETTING
    assert verdict.category is Category.PREFECT_SETTING_INVALID
    assert says in verdict.cause
    assert "secret" not in str(verdict)


async def test_a_port_for_metrics_that_is_in_use_ends_no_run(here: Pool, tmp_path: Path) -> None:
    """Observed before: every second run on a node, and each run with tasks, was Crashed."""
    run_id, attempt = await claimed(here, "runs_for", tmp_path)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        process = driver(
            run_id,
            attempt,
            PREFECT_CLIENT_METRICS_ENABLED="true",
            PREFECT_CLIENT_METRICS_PORT=str(taken.getsockname()[1]),
        )
        said = await anyio.to_thread.run_sync(output, process)
    assert "This run serves no client metrics" in said
    assert traces(tmp_path, "ran")
    assert await here.state(run_id) == StateType.COMPLETED
