"""A worker whose settings cannot work."""

import pytest

from prefect_ray_worker.worker import RayWorker

PREFIX = "PREFECT_INTEGRATIONS_RAY_WORKER_"


@pytest.mark.parametrize(
    ("name", "value"),
    [("ADRESS", "http://head:8265"), ("POLL_INTERVAL_SECONDS", "often"), ("ADDRESS", "ray://h:1")],
)
async def test_a_setting_that_cannot_be_used_ends_the_worker_in_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prefect worker start` printed a traceback of 31 lines above the reason."""
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(SystemExit) as ended:
        await RayWorker(work_pool_name="never-asked-for").start(run_once=True)
    assert ended.value.__suppress_context__
    message = str(ended.value)
    assert message.startswith("The worker cannot start: ")
    assert f"{PREFIX}{name}" in message
    assert "\n" not in message
