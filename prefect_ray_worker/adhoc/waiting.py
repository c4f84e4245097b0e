"""Waits for the run of a call. Ctrl-C, and the end of a parent flow, cancel the run."""

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread

from prefect_ray_worker.adhoc.following import Following, RayFlowRunFuture
from prefect_ray_worker.adhoc.log_tail import LogTail
from prefect_ray_worker.adhoc.telling import page_of, say
from prefect_ray_worker.errors import AnswerMissing
from prefect_ray_worker.prefect_api.compat.flows import raise_if_suspended

Begin = Callable[[], RayFlowRunFuture[Any]]

# A flow that is told to stop from outside, and a task that is cancelled, must not wait for a worker
# that does not come. Such a flow has a grace period of 30 s by default.
_PARENT_WAITS_SECONDS = 30.0


def follow(begin: Begin, stream_logs: bool, *, return_state: bool = False) -> Any:
    """Create a run, follow it to its end and return the flow's value, or the state.

    Ctrl-C, and the end of a parent flow, cancel the run. A second Ctrl-C lets go of it; the end of
    a parent waits for 30 s at most.

    Args:
        begin: Creates the run.
        stream_logs: Whether to print its logs.
        return_state: Return the state instead.
    """
    future = begin()
    tail = _tail_of(future, stream_logs)
    try:
        with Following(future, tail) as following:
            following.go_on()
    except Exception as exc:
        _tell_that_it_goes_on(future, exc)
        raise
    except BaseException as exc:
        is_user = isinstance(exc, KeyboardInterrupt)
        trouble = _cancel_and_wait(future, tail, is_user=is_user)
        if trouble is not None:
            raise exc from trouble
        raise
    raise_if_suspended()
    return future.state_with_data() if return_state else future.result()


async def follow_async(begin: Begin, stream_logs: bool, *, return_state: bool = False) -> Any:
    """Do what `follow` does without blocking the event loop.

    To cancel the task cancels the run, and waits for its end for 30 s at most: `asyncio.wait_for`
    cancels only once.

    Args:
        begin: Creates the run.
        stream_logs: Whether to print its logs.
        return_state: Return the state instead.
    """
    begun = _Begun(begin, stream_logs)
    try:
        future = await anyio.to_thread.run_sync(begun.run)
        with Following(future, begun.tail) as following:
            await following.go_on_async()
    except BaseException as exc:
        if _is_dropped(exc):
            _cancel_dropped(begun)
            raise
        if isinstance(exc, Exception):
            if begun.future is not None:
                _tell_that_it_goes_on(begun.future, exc)
            raise
        trouble: Exception | None = None
        with anyio.CancelScope(shield=True):
            trouble = await _cancel_and_wait_async(begun)
        if trouble is not None:
            raise exc from trouble
        raise
    raise_if_suspended()
    if return_state:
        return await anyio.to_thread.run_sync(future.state_with_data)
    return await future.aresult()


def _is_dropped(exc: BaseException) -> bool:
    """Return whether Python closes a pending task whose event loop has ended."""
    if isinstance(exc, GeneratorExit):
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # anyio raises this in place of the GeneratorExit
        return True
    return False


def _cancel_dropped(begun: "_Begun") -> None:
    """Cancel the run of a task that no loop runs any more, without one."""
    future = begun.abandon()
    if future is None:
        return
    page = page_of(future.flow_run_id)
    say(f"The event loop ended before the flow run {page}, which is being cancelled.")
    with suppress(Exception):  # the user is told
        cancel(future)


def _tell_that_it_goes_on(future: RayFlowRunFuture[Any], exc: Exception) -> None:
    """Tell the user of a run that is followed no more, unless it was deleted."""
    if not isinstance(exc, AnswerMissing):
        run_id = future.flow_run_id
        say(
            f"The flow run {page_of(run_id)} is no longer followed ({type(exc).__name__}), and may "
            f"go on. To end it, run `prefect flow-run cancel {run_id}`."
        )


def _tail_of(future: RayFlowRunFuture[Any], stream_logs: bool) -> LogTail | None:
    return LogTail(future.flow_run_id) if stream_logs else None


def cancel(future: RayFlowRunFuture[Any]) -> None:
    """Ask for a run to be cancelled; tell the user if Prefect does not confirm that.

    Raises:
        BaseException: Why it is not confirmed.
    """
    with _telling(_not_cancelled(future.flow_run_id)):
        future.cancel()


class _Begun:
    """Creates a run in a thread, which goes on when the task that waits for it is cancelled."""

    def __init__(self, begin: Begin, stream_logs: bool) -> None:
        self._begin = begin
        self._stream_logs = stream_logs
        self.tail: LogTail | None = None
        self._lock = threading.Lock()
        self._is_abandoned = False
        self.future: RayFlowRunFuture[Any] | None = None

    def run(self) -> RayFlowRunFuture[Any]:
        future = self._begin()
        self.tail = _tail_of(future, self._stream_logs)
        with self._lock:
            self.future = future
            is_abandoned = self._is_abandoned
        if is_abandoned:
            cancel(future)
        return future

    def abandon(self) -> RayFlowRunFuture[Any] | None:
        with self._lock:
            self._is_abandoned = True
            return self.future


def _cancel_and_wait(
    future: RayFlowRunFuture[Any], tail: LogTail | None, *, is_user: bool
) -> Exception | None:
    """Cancel a run and follow it to its end; return the error that prevented one of the two."""
    say(_cancelling(future.flow_run_id))
    try:
        cancel(future)
        deadline = None if is_user else time.monotonic() + _PARENT_WAITS_SECONDS
        following = Following(future, tail)
        with _telling(_let_go(future.flow_run_id)), following:
            following.go_on(deadline)
            _tell_unless_ended(following, future)
    except Exception as exc:  # noqa: BLE001 (the caller raises what has ended the wait)
        return exc
    return None


async def _cancel_and_wait_async(begun: _Begun) -> Exception | None:
    future = begun.abandon()
    if future is None:
        return None
    say(_cancelling(future.flow_run_id))
    try:
        with _telling(_not_cancelled(future.flow_run_id)):
            await anyio.to_thread.run_sync(future.cancel)
        deadline = time.monotonic() + _PARENT_WAITS_SECONDS
        following = Following(future, begun.tail)
        with _telling(_let_go(future.flow_run_id)), following:
            await following.go_on_async(deadline)
            _tell_unless_ended(following, future)
    except Exception as exc:  # noqa: BLE001 (as above)
        return exc
    return None


def _tell_unless_ended(following: Following, future: RayFlowRunFuture[Any]) -> None:
    if not following.has_ended:
        say(_let_go(future.flow_run_id))


@contextmanager
def _telling(text: str) -> Generator[None]:
    """Print a line if an error, or another interruption, ends the block."""
    try:
        yield
    except BaseException:
        say(text)
        raise


def _cancelling(run_id: UUID) -> str:
    return f"Cancelling the flow run {page_of(run_id)}. Interrupt again to leave it to itself."


def _let_go(run_id: UUID) -> str:
    return f"The flow run is being cancelled and is no longer followed: {page_of(run_id)}"


def _not_cancelled(run_id: UUID) -> str:
    return (
        f"The flow run could not be cancelled, and goes on until you cancel it: {page_of(run_id)}. "
        f"When Prefect answers again, run `prefect flow-run cancel {run_id}`."
    )
