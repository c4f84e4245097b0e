"""Follows the run of a call: prints its logs, and returns what came of it."""

import time
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, Self, TypeVar
from uuid import UUID

import anyio
import anyio.to_thread
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFlowRunFuture, PrefectFuture
from prefect.results import (
    ResultRecordMetadata,  # pyright: ignore[reportPrivateImportUsage]
    get_result_store,
)
from prefect.states import Cancelling, aget_state_exception
from prefect.utilities.asyncutils import run_coro_as_sync

from prefect_ray_worker.adhoc.done_callbacks import DoneCallbacks
from prefect_ray_worker.adhoc.log_tail import LogTail
from prefect_ray_worker.adhoc.missing import MissingValue
from prefect_ray_worker.adhoc.shared_look import SharedLook
from prefect_ray_worker.adhoc.telling import page_of, say
from prefect_ray_worker.adhoc.untaken import Untaken
from prefect_ray_worker.bundles.answers import FlowAnswer, read_answer
from prefect_ray_worker.bundles.carriers import patiently
from prefect_ray_worker.errors import AnswerMissing
from prefect_ray_worker.prefect_api.compat.flows import raise_if_suspended
from prefect_ray_worker.shared.ids import (
    LOG_END_LABEL,
    UNFINISHED_LABEL,
    attempt_name,
    present_claim,
)
from prefect_ray_worker.shared.masking import masked

R = TypeVar("R")
T = TypeVar("T")

# Prefect Cloud takes 250 requests a minute of an account in its smallest plan. So each call asks
# less often where many wait: together they read two runs and four logs a second, beside the look
# that they share and that tells of the ends. What lasts for a minute may end a second earlier.
_INTERVAL_SECONDS, _CALM_INTERVAL_SECONDS, _CALM_AFTER_SECONDS = 0.5, 1.0, 60.0
_INTERVAL_SECONDS_OF_EACH = 0.5
_LOG_INTERVAL_SECONDS, _LOG_INTERVAL_SECONDS_OF_EACH = 1.0, 0.25
_API_AWAY_SECONDS = 600.0
# The last lines come after the final state: from the driver when it ends, and from the worker,
# which reads the job's output about once a second. The worker says when all are there.
_DRAIN_INTERVAL_SECONDS = 0.2
_LONGEST_DRAIN_SECONDS = 20.0
_NO_VALUE = (
    "To have large values back, give the work pool a storage block (`prefect work-pool storage "
    "configure`), or the flow a result_storage; to have none, return None."
)


class RayFlowRunFuture(PrefectFlowRunFuture[R]):
    """The run of a flow that `ray_job` has bound.

    Attributes:
        attempt: Name of the attempt that has ended; None before, and if there was none.
        parent_task_run_id: The task run that shows the run as a subflow of its caller; None if no
            flow has called it.
    """

    attempt: str | None = None
    parent_task_run_id: UUID | None = None
    _has_looked_for_data = False
    _why_missing: str | None = None

    def __init__(self, flow_run_id: UUID) -> None:
        super().__init__(flow_run_id)
        self.untaken = Untaken()
        self._callbacks = DoneCallbacks()

    @property
    def task_run_id(self) -> UUID:
        """The task run of a subflow. Prefect wants one of all futures that a task gets (3.8.8)."""
        return self.parent_task_run_id or self.flow_run_id

    @property
    def state(self) -> State[Any]:
        """The run's state; with the flow's value, if the run has ended and was waited for.

        From there a task that gets the future takes the value.
        """
        if self._final_state is None:
            return super().state
        state = self.state_with_data()
        if self._why_missing is None:
            return state
        told = copy(state)  # not `model_copy`: in 3.8.8 its copy has no timestamp
        told.data = MissingValue.because(self._why_missing)
        return told

    def state_after_callback(self) -> State[Any]:
        """Return the state for a task that gets the future, once the future's callback was called.

        Asks Prefect nothing: a task runner calls it in a thread that all its tasks need.

        Raises:
            BaseException: Why this process has given up following the run.
        """
        if self._callbacks.trouble is not None:
            raise self._callbacks.trouble
        return self.state

    def cancel(self) -> None:
        """Ask for the run to be cancelled. Does nothing if it has ended."""
        with get_client(sync_client=True) as client:
            state = patiently(lambda: client.read_flow_run(self.flow_run_id)).state
            if state is None or not state.is_final():
                patiently(lambda: client.set_flow_run_state(self.flow_run_id, Cancelling()))

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the run has ended.

        Args:
            timeout: Limit in seconds. By default there is none.
        """
        self._follow(None if timeout is None else time.monotonic() + timeout)
        raise_if_suspended()

    def _follow(self, deadline: float | None) -> None:
        if self._final_state is None:
            with Following(self) as following:
                following.go_on(deadline)

    async def wait_async(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 (Prefect's)
        """Wait until the run has ended; see `wait`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._final_state is None:
            with Following(self) as following:
                await following.go_on_async(deadline)
        raise_if_suspended()

    def add_done_callback(self, fn: Callable[[PrefectFuture[R]], None]) -> None:
        """Call a function with this future once the run has ended and its value is here.

        It is called too if the run was deleted, or if Prefect does not answer for ten minutes;
        `result` then says so.
        """
        if self._has_looked_for_data:
            fn(self)
        else:
            self._callbacks.add(partial(fn, self), self._learn)

    def _learn(self) -> None:
        self._follow(None)
        self.state_with_data()

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """Wait for the run and return the flow's value.

        Args:
            timeout: Limit in seconds. By default there is none.
            raise_on_failure: If False, return the exception of a failed run instead of raising it.

        Raises:
            TimeoutError: The run has not ended.
            AnswerMissing: The run has completed, but its value did not come back; or the run was
                deleted.
            Exception: The flow's own exception, or Prefect's `CrashedRun` or `CancelledRun`.
        """
        if self._final_state is None:
            self.wait(timeout)
        raise_if_suspended()
        return self._outcome(raise_on_failure, timeout)

    async def aresult(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 (Prefect's)
        raise_on_failure: bool = True,
    ) -> R:
        """Wait for the run and return the flow's value; see `result`."""
        if self._final_state is None:
            await self.wait_async(timeout)
        raise_if_suspended()
        return await anyio.to_thread.run_sync(self._outcome, raise_on_failure, timeout)

    def ended(self, state: State[Any], claim: UUID | None) -> None:
        """Take note of the run's final state, and of the claim that began its last attempt.

        Several threads may follow the run: the first that sees its end tells of it.
        """
        if self._final_state is None:
            self.attempt = attempt_name(claim) if claim is not None else None
            self._final_state, self._callbacks.trouble = state, None

    def state_with_data(self) -> State[Any]:
        """Return the final state, with the flow's value or exception where it came back."""
        state = self._final_state
        if state is None:
            raise RuntimeError("The flow run has not ended.")
        if self._has_looked_for_data:
            return state
        answer, self._callbacks.trouble = self._answer(state), None
        if answer is not None and answer.kind in ("value", "exception"):
            state.data = get_result_store().create_result_record(answer.value)
        elif state.is_completed() and not isinstance(state.data, ResultRecordMetadata):
            self._why_missing = str(self._without_value(answer))
        self._has_looked_for_data = True
        return state

    def _outcome(self, raise_on_failure: bool, timeout: float | None) -> Any:
        state = self._final_state
        if state is None:
            raise TimeoutError(f"Flow run {self.flow_run_id} has not ended within {timeout} s.")
        answer, self._callbacks.trouble = self._answer(state), None
        if state.is_completed():
            return self._value(state, answer)
        if answer is not None and answer.kind == "exception":
            raised = answer.value
            raised.add_note(f"Raised in the flow run {page_of(self.flow_run_id)}:\n{answer.text}")
        else:
            raised = run_coro_as_sync(aget_state_exception(state))
            if answer is not None and answer.kind == "unreadable":
                raised.add_note(
                    f"Raised in the flow run {page_of(self.flow_run_id)}. The exception itself "
                    f"cannot be unpickled here ({type(answer.value).__name__}: {answer.value}):\n"
                    f"{answer.text}"
                )
        if raise_on_failure:
            raise raised
        return raised

    def _value(self, state: State[Any], answer: FlowAnswer | None) -> Any:
        if answer is not None and answer.kind == "value":
            return answer.value
        if isinstance(state.data, ResultRecordMetadata):
            return self._stored_value(state)
        raise self._without_value(answer)

    def _without_value(self, answer: FlowAnswer | None) -> AnswerMissing:
        if answer is not None and answer.kind == "unreadable":
            return AnswerMissing(
                f"The flow run {page_of(self.flow_run_id)} is Completed. Its value cannot be "
                f"unpickled here ({type(answer.value).__name__}: {answer.value}). Install the "
                "packages that it needs, in the versions that the cluster has."
            )
        why = answer.text if answer is not None else "The flow's value did not come back."
        return AnswerMissing(
            f"The flow run {page_of(self.flow_run_id)} is Completed. {why} {_NO_VALUE}"
        )

    def _stored_value(self, state: State[Any]) -> Any:
        try:
            return state.result(_sync=True)  # pyright: ignore[reportCallIssue]
        except Exception as exc:  # whatever the storage's own library raises
            why = masked(f"{type(exc).__name__}: {exc}")
            raise AnswerMissing(
                f"The flow run {page_of(self.flow_run_id)} is Completed. Its value cannot be read "
                f"from the result storage ({why}). The run's log says whether it was stored. If it "
                "was, give this process access to the storage and the packages of its block."
            ) from exc

    def _answer(self, state: State[Any]) -> FlowAnswer | None:
        with get_client(sync_client=True) as client:
            attempt = self.attempt
            if attempt is None:
                history = patiently(
                    lambda: client.read_flow_run_states(self.flow_run_id), _API_AWAY_SECONDS
                )
                if (claim := present_claim(history)) is None:
                    return None
                self.attempt = attempt = attempt_name(claim)
            return patiently(
                lambda: read_answer(client, self.flow_run_id, attempt, state), _API_AWAY_SECONDS
            )


class Following:
    """Looks at a run, again and again, until it has ended.

    Args:
        future: The run.
        tail: Prints its logs; None to print none.
    """

    def __init__(self, future: RayFlowRunFuture[Any], tail: LogTail | None = None) -> None:
        self._future = future
        self._run_id = future.flow_run_id
        self._client: SyncPrefectClient = get_client(sync_client=True)
        self._look = SharedLook.at(self._client)
        self._tail = tail
        self._ended_at: float | None = None
        self._next_read = self._next_log = 0.0
        self._calm_at = time.monotonic() + _CALM_AFTER_SECONDS

    def __enter__(self) -> Self:
        """Open the client."""
        self._client.__enter__()
        self._look.begin(self._run_id)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the client."""
        self._look.end(self._run_id)
        self._client.__exit__(*exc_info)

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended."""
        return self._ended_at is not None

    def go_on(self, deadline: float | None = None) -> None:
        """Follow the run to its end, or until a moment of the monotonic clock."""
        while not self._step(deadline) and not _is_over(deadline):
            time.sleep(self._pause(deadline))

    async def go_on_async(self, deadline: float | None = None) -> None:
        """Do what `go_on` does without blocking the event loop."""
        while not await anyio.to_thread.run_sync(self._step, deadline):
            if _is_over(deadline):
                return
            await anyio.sleep(self._pause(deadline))

    def _pause(self, deadline: float | None) -> float:
        now = time.monotonic()
        pause = _INTERVAL_SECONDS if now < self._calm_at else _CALM_INTERVAL_SECONDS
        if self._ended_at is not None:
            pause = _DRAIN_INTERVAL_SECONDS
        return pause if deadline is None else min(pause, max(deadline - now, 0.0))

    def _is_worth_a_read(self, deadline: float | None) -> bool:
        """Return whether to read the run: it seems to have ended, or has not been read for long."""
        is_due = time.monotonic() >= self._next_read or _is_over(deadline)
        may_wait = not is_due and self._ended_at is None
        if may_wait and self._run_id not in self._look.ended(self._client):
            return False
        self._next_read = time.monotonic() + SharedLook.followers * _INTERVAL_SECONDS_OF_EACH
        return True

    def _read(self, deadline: float | None) -> FlowRun:
        try:
            return self._patiently(lambda: self._client.read_flow_run(self._run_id), deadline)
        except ObjectNotFound as exc:
            raise AnswerMissing(
                f"Prefect does not have the flow run {self._run_id} any more: it was deleted. The "
                "pool's worker stops its job. Call the flow anew if you need its value."
            ) from exc

    def _patiently(self, ask: Callable[[], T], deadline: float | None) -> T:
        return patiently(ask, _API_AWAY_SECONDS, deadline=deadline)

    def _step(self, deadline: float | None) -> bool:
        """Look once; return whether the run has ended and its logs have been printed."""
        if not self._is_worth_a_read(deadline):
            self._print_new(deadline)
            return False
        run = self._read(deadline)
        if self._ended_at is None and run.state is not None and run.state.is_final():
            history = self._patiently(
                lambda: self._client.read_flow_run_states(self._run_id), deadline
            )
            self._future.ended(run.state, present_claim(history))
            self._ended_at = time.monotonic()
        if self._ended_at is None and (why := self._future.untaken.news(self._client, run)):
            say(why)
        if self._tail is None:
            return self._ended_at is not None
        self._tail.run_name = run.name
        if self._ended_at is None:
            self._print_new(deadline)
            return False
        # Asked before the lines are read, so that none comes in between.
        is_complete = self._has_whole_log(run)
        self._tail.print_new(self._client, is_last=is_complete, deadline=deadline)
        if is_complete:
            return True
        if time.monotonic() - self._ended_at <= _LONGEST_DRAIN_SECONDS:
            return False
        say(f"The last lines of the log may be missing here; see {page_of(self._run_id)}.")
        return True

    def _print_new(self, deadline: float | None) -> None:
        """Print the new lines of a run that goes on, unless its log was read a moment ago."""
        if self._tail is None or (time.monotonic() < self._next_log and not _is_over(deadline)):
            return
        pause = max(_LOG_INTERVAL_SECONDS, SharedLook.followers * _LOG_INTERVAL_SECONDS_OF_EACH)
        self._next_log = time.monotonic() + pause
        self._tail.print_new(self._client, deadline=deadline)

    def _has_whole_log(self, run: FlowRun) -> bool:
        """Return whether all that the flow has printed is in Prefect, as the worker says."""
        attempt = self._future.attempt
        if attempt is None or run.labels.get(LOG_END_LABEL) == attempt:
            return True
        had_no_job = run.infrastructure_pid is None and run.state_type != StateType.COMPLETED
        return had_no_job or run.labels.get(f"{UNFINISHED_LABEL}.{attempt}") != "yes"


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
