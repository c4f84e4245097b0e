"""A call inside another flow, in this process."""

import asyncio
import pickle
import queue
import signal
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from aiohttp import web
from prefect import flow
from prefect.client.schemas.objects import StateType
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, as_completed
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Running

from prefect_ray_worker import ray_job
from prefect_ray_worker.adhoc import following, waiting
from prefect_ray_worker.adhoc.following import Following, RayFlowRunFuture
from prefect_ray_worker.adhoc.telling import page_of
from prefect_ray_worker.adhoc.waiting import follow, follow_async
from prefect_ray_worker.errors import AnswerMissing
from tests.integration.busy_api import busy_api
from tests.integration.driver_kit import tasks_of
from tests.integration.harness import Pool
from tests.integration.test_adhoc_sending import new_flow, served
from tests.integration.test_bundles import new_run

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


async def test_all_that_wait_for_a_run_are_called_whatever_its_final_state_is_named(
    here: Pool,
) -> None:
    """Prefect calls only the last, and only for the usual names: tasks waited for ever."""
    run_id = await new_run(here)
    future: Any = RayFlowRunFuture[int](run_id)
    called: queue.SimpleQueue[tuple[str, PrefectFuture[Any]]] = queue.SimpleQueue()
    for name in ("first", "second"):
        future.add_done_callback(lambda f, name=name: called.put((name, f)))
    assert pickle.loads(pickle.dumps(future)) == future
    await here.client.set_flow_run_state(run_id, Completed(name="Skipped"), force=True)

    def all_called() -> list[Any]:
        found = [called.get(timeout=10), called.get(timeout=10)]
        again: Any = RayFlowRunFuture[int](run_id)
        return [*found, *as_completed([again], timeout=10)]

    assert await anyio.to_thread.run_sync(all_called) == [
        ("first", future), ("second", future), future,
    ]  # fmt: skip
    away = {PREFECT_API_URL: "http://127.0.0.1:9/api"}
    with temporary_settings(away):  # nothing is asked for in the thread of a task runner
        future.wait()
        assert future.state.name == "Skipped"


async def test_all_that_wait_for_a_run_that_was_deleted_are_told(here: Pool) -> None:
    run_id = await new_run(here)
    await here.client.delete_flow_run(run_id)
    future: Any = RayFlowRunFuture[int](run_id)
    called: queue.SimpleQueue[Any] = queue.SimpleQueue()
    future.add_done_callback(called.put)
    await anyio.to_thread.run_sync(lambda: called.get(timeout=10))
    with pytest.raises(AnswerMissing, match="it was deleted"):
        future.state_after_callback()


async def test_state_is_read_anew_after_a_callback_for_which_the_api_was_away(
    here: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state raised the error of the callback's thread for ever."""
    future: Any = RayFlowRunFuture[int](await new_run(here))
    called: queue.SimpleQueue[Any] = queue.SimpleQueue()
    monkeypatch.setattr(following, "_API_AWAY_SECONDS", 0.0)
    away = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away):
        future.add_done_callback(called.put)
        await anyio.to_thread.run_sync(lambda: called.get(timeout=10))
    with pytest.raises(httpx.ConnectError):  # what a task runner asks asks Prefect nothing
        future.state_after_callback()
    assert not future.state.is_final()


async def test_many_that_wait_learn_of_an_end_with_one_request(
    here: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 300 looked at its own run once in 30 s."""
    monkeypatch.setattr(following, "_INTERVAL_SECONDS_OF_EACH", 1000.0)
    reads: queue.SimpleQueue[None] = queue.SimpleQueue()
    read = Following._read

    def counted(followed: Following, deadline: float | None) -> Any:
        run = read(followed, deadline)
        reads.put(None)
        return run

    monkeypatch.setattr(Following, "_read", counted)
    futures: list[Any] = [RayFlowRunFuture[int](await new_run(here)) for _ in range(2)]
    called: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(called.put)
        await anyio.to_thread.run_sync(lambda: reads.get(timeout=10))
    for future in futures:
        await here.client.set_flow_run_state(future.flow_run_id, Completed(), force=True)
        assert await anyio.to_thread.run_sync(lambda: called.get(timeout=10)) is future


def ends_with_its_parent(begin: Any) -> None:
    follow(begin, stream_logs=False)


def runs_out_of_time(begin: Any) -> None:
    asyncio.run(asyncio.wait_for(follow_async(begin, stream_logs=False), 0.1))


@pytest.mark.parametrize("call", [ends_with_its_parent, runs_out_of_time])
async def test_call_that_is_ended_does_not_wait_for_ever_for_a_worker_to_cancel_the_run(
    here: Pool, call: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An awaited call did, and the other said nothing of the run that it left."""
    run_id = await new_run(here)
    await here.client.update_flow_run(run_id, infrastructure_pid="elsewhere")
    await here.client.set_flow_run_state(run_id, Running(), force=True)
    go_on = Following.go_on

    def stopped(following: Following, deadline: float | None = None) -> None:
        monkeypatch.setattr(Following, "go_on", go_on)
        raise TerminationSignal(signal=signal.SIGTERM)

    monkeypatch.setattr(Following, "go_on", stopped)
    monkeypatch.setattr(waiting, "_PARENT_WAITS_SECONDS", 0.1)
    with anyio.fail_after(20), pytest.raises((TimeoutError, TerminationSignal)):
        await anyio.to_thread.run_sync(
            call, lambda: RayFlowRunFuture[Any](run_id), abandon_on_cancel=True
        )
    assert f"no longer followed: {page_of(run_id)}" in capsys.readouterr().err
    assert (await here.read(run_id)).state_type == StateType.CANCELLING
