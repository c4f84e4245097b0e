"""A caller that is interrupted while it waits for the run of its call."""

import asyncio
import gc
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_ray_worker.adhoc import waiting
from prefect_ray_worker.adhoc.following import Following, RayFlowRunFuture
from prefect_ray_worker.adhoc.waiting import follow, follow_async
from prefect_ray_worker.bundles import carriers
from tests.ports import free_port


def called(begin: Any) -> Any:
    return follow(begin, stream_logs=True)


def awaited(begin: Any) -> Any:
    return asyncio.run(follow_async(begin, stream_logs=True))


@pytest.mark.parametrize(
    ("call", "interruption"), [(called, KeyboardInterrupt), (awaited, asyncio.CancelledError)]
)
def test_ctrl_c_that_does_not_reach_prefect_says_that_the_run_goes_on(
    call: Any,
    interruption: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It said that the run is being cancelled, and raised the error of the HTTP client."""

    def interrupted(*_: object) -> None:
        raise interruption

    monkeypatch.setattr(Following, "go_on", interrupted)
    monkeypatch.setattr(Following, "go_on_async", interrupted)
    monkeypatch.setattr(carriers.patiently, "__defaults__", (0.0,))
    future = RayFlowRunFuture[Any](uuid4())
    away = {
        PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api",
        PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    with temporary_settings(away), pytest.raises(interruption) as raised:
        call(lambda: future)
    assert isinstance(raised.value.__cause__, httpx.ConnectError)
    said = capsys.readouterr().err
    assert f"`prefect flow-run cancel {future.flow_run_id}`" in said
    assert "is being cancelled" not in said


@pytest.mark.parametrize("call", [called, awaited])
def test_call_that_gives_up_following_its_run_says_that_the_run_may_go_on(
    call: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended with the error of the HTTP client alone."""

    def away(*_: object) -> None:
        raise httpx.ConnectError("away")

    monkeypatch.setattr(Following, "go_on", away)
    monkeypatch.setattr(Following, "go_on_async", away)
    future = RayFlowRunFuture[Any](uuid4())
    elsewhere = temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"})
    with elsewhere, pytest.raises(httpx.ConnectError):
        call(lambda: future)
    said = capsys.readouterr().err
    assert f"may go on. To end it, run `prefect flow-run cancel {future.flow_run_id}`" in said


def test_task_that_its_loop_leaves_pending_cancels_its_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run went on, and nobody was told."""
    future = RayFlowRunFuture[Any](uuid4())
    cancelled: list[object] = []
    following = asyncio.Event()

    async def go_on(*_: object) -> None:
        following.set()
        await asyncio.Event().wait()

    async def main() -> None:
        call = follow_async(lambda: future, stream_logs=False)
        asyncio.ensure_future(call)  # noqa: RUF006 (as users forget it)
        await following.wait()

    monkeypatch.setattr(Following, "go_on_async", go_on)
    monkeypatch.setattr(waiting, "cancel", cancelled.append)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        del loop
        gc.collect()
    assert cancelled == [future]
    assert "The event loop ended before the flow run" in capsys.readouterr().err
