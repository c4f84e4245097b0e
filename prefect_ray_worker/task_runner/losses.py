"""What became of a task whose process could not tell: in words, and in the Prefect API."""

import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterId,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType, TaskRun, TaskRunPolicy
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger
from prefect.states import AwaitingRetry, Cancelled, Crashed, Pending
from prefect.utilities.engine import emit_task_run_state_change_event

from prefect_ray_worker.task_runner.pending import PendingTask
from prefect_ray_worker.task_runner.task_end import NOT_LOADED, TaskEnd, describe

_log = get_logger("task_runner.ray")

# The events of a task are on their way for a moment.
_KNOWN_SECONDS = 1.5
_ASK_SECONDS = 0.2
# What an API with its default settings gives in one answer.
_PAGE = 200
_PARENTS = "__parents__"
"""Where Prefect (3.8.8) notes, among a run's inputs, the run whose task has submitted it."""
_CANCELLED = "The task was cancelled with its flow, before it could end by itself."
_LONG_AGO = datetime.fromtimestamp(0, UTC)
_UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.SCHEDULED]


def lost(pending: PendingTask, exc: BaseException) -> State[Any]:
    """Return the final state of a run whose process did not say one.

    Args:
        pending: The run.
        exc: What Ray says.
    """
    from ray.exceptions import TaskCancelledError

    if isinstance(exc, TaskCancelledError):
        return _of(pending, Cancelled(message="The task was cancelled in Ray, not by its flow."))
    return _of(pending, Crashed(message=describe(exc)))  # its result is a CrashedRun


def cancelled(pending: PendingTask) -> State[Any]:
    """Return the final state of a run that was cancelled and has not said how it ended."""
    return _of(pending, Cancelled(message=_CANCELLED))


def _of(pending: PendingTask, state: State[Any]) -> State[Any]:
    state.state_details.task_run_id = pending.future.task_run_id
    state.state_details.flow_run_id = pending.flow_run_id
    return state


def known_by(pending: PendingTask, end: TaskEnd | None = None) -> float | None:
    """Return when the API has what a run has told it, if the run tells it nothing from now on.

    Args:
        pending: The run.
        end: What its process has said of its end, if anything.

    Returns:
        A time of `time.monotonic()`; None for a run that has told the API nothing.
    """
    has_begun = pending.telemetry_ref is not None and (end is None or end.trouble != NOT_LOADED)
    # An earlier try may have begun where this one could not.
    return time.monotonic() + _KNOWN_SECONDS if has_begun or pending.has_died else None


def report(
    pending: PendingTask,
    state: State[Any],
    until: float | None,
    *,
    must_exist: bool = False,
    overrules: bool = False,
) -> None:
    """Tell the Prefect API of a state that the task's process could not tell of.

    Args:
        pending: The run.
        state: The state.
        until: How long to look for the run there, as `known_by` has it.
        must_exist: Whether a run that Prefect does not know shall stay unknown to it.
        overrules: Whether the state is to follow a final one of the task's process.
    """
    known = None
    if until is not None:
        known = _read(pending.future.task_run_id, until, final=overrules)
    if known is None:
        if must_exist:
            return
        known = _never_seen(pending)
    before = known.state or Pending()
    if before.is_final() and not overrules:
        return
    # The API keeps the state with the latest time, and clocks of nodes differ.
    latest = max(state.timestamp, before.timestamp + timedelta(microseconds=1))
    state.timestamp = latest
    _emit(known, before, state)


def report_cancelled(
    tasks: Collection[PendingTask], killed: Collection[PendingTask], seconds: float
) -> bool:
    """Tell the Prefect API that runs, and what they have submitted themselves, are cancelled.

    Only of those that it takes for unfinished: the others have ended, or never begun. What a run
    has said just before its process was killed may still be on its way, so we look repeatedly.

    Args:
        tasks: Runs that have not said how they ended.
        killed: Those of them whose process was killed, and may not have said that it began.
        seconds: How long to look for them.

    Returns:
        Whether there was anything to tell.
    """
    ids = {pending.future.task_run_id for pending in tasks}
    told: set[UUID] = set()
    deadline = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while True:
            for run in _unfinished_of(client, tasks, ids):
                if run.id not in told:
                    told.add(run.id)
                    _tell_cancelled(run)
            if ids <= told or time.monotonic() >= deadline:
                break
            time.sleep(_ASK_SECONDS)
    for pending in killed:
        if pending.future.task_run_id not in told:
            told.add(pending.future.task_run_id)
            _tell_cancelled(_never_seen(pending))
    return bool(told)


def _unfinished_of(
    client: SyncPrefectClient, tasks: Collection[PendingTask], ids: set[UUID]
) -> list[TaskRun]:
    """Return the unfinished runs among some, with their nested ones."""
    flow_runs = list({f.flow_run_id for f in tasks if f.flow_run_id is not None})
    found: list[TaskRun] = []
    if flow_runs:
        of_these = FlowRunFilter(id=FlowRunFilterId(any_=flow_runs))
        found += _unfinished(client, flow_run_filter=of_these)
    apart = [f.future.task_run_id for f in tasks if f.flow_run_id is None]
    for start in range(0, len(apart), _PAGE):
        some = TaskRunFilterId(any_=apart[start : start + _PAGE])
        found += _unfinished(client, task_run_id=some)
    ours = set(ids)
    # A nested run is younger than its parent, and an id says how old it is.
    for run in sorted(found, key=lambda run: run.id):
        if any(getattr(parent, "id", None) in ours for parent in run.task_inputs.get(_PARENTS, [])):
            ours.add(run.id)
    return [run for run in found if run.id in ours]


def _unfinished(
    client: SyncPrefectClient,
    *,
    flow_run_filter: FlowRunFilter | None = None,
    task_run_id: TaskRunFilterId | None = None,
) -> Iterator[TaskRun]:
    state = TaskRunFilterState(type=TaskRunFilterStateType(any_=_UNFINISHED))
    where = TaskRunFilter(id=task_run_id, state=state)
    offset, page = 0, [None]
    while page:
        page = client.read_task_runs(
            flow_run_filter=flow_run_filter, task_run_filter=where, offset=offset
        )
        yield from page
        offset += len(page)


def _tell_cancelled(run: TaskRun) -> None:
    before = run.state or Pending()
    state: State[Any] = Cancelled(
        message=_CANCELLED,
        timestamp=max(datetime.now(UTC), before.timestamp + timedelta(microseconds=1)),
    )
    state.state_details.task_run_id, state.state_details.flow_run_id = run.id, run.flow_run_id
    _emit(run, before, state)


def _emit(run: TaskRun, before: State[Any], state: State[Any]) -> None:
    run.state = state
    run.end_time = cast("Any", state.timestamp)
    emit_task_run_state_change_event(task_run=run, initial_state=before, validated_state=state)


def _read(task_run_id: UUID, until: float, *, final: bool) -> TaskRun | None:
    with get_client(sync_client=True) as client:
        while True:
            try:
                run = client.read_task_run(task_run_id)
            except ObjectNotFound:
                run = None
            except Exception:
                _log.warning("Cannot read task run %s", task_run_id, exc_info=True)
                return None
            state = run.state if run else None
            known = state is not None and (state.is_final() or (state.is_running() and not final))
            if known or time.monotonic() >= until:
                return run
            time.sleep(_ASK_SECONDS)


def _never_seen(pending: PendingTask) -> TaskRun:
    """Make up the run as the engine would have: it has died before it could say anything."""
    task, run_id = pending.task, pending.future.task_run_id
    state: State[Any] = Pending(timestamp=datetime.now(UTC) - timedelta(milliseconds=1))
    return TaskRun(
        id=run_id,
        name=f"{task.name}-{str(run_id)[-3:]}",
        flow_run_id=pending.flow_run_id,
        task_key=task.task_key,
        dynamic_key=str(run_id),
        task_version=task.version,
        empirical_policy=TaskRunPolicy(
            retries=task.retries,
            retry_delay=task.retry_delay_seconds,
            retry_jitter_factor=task.retry_jitter_factor,
        ),
        tags=sorted(pending.tags),
        task_inputs=cast("Any", {k: list(v) for k, v in pending.dependencies.items()}),
        expected_start_time=cast("Any", state.timestamp),
        state=state,
        state_id=state.id,
        state_type=state.type,
        state_name=state.name,
    )


def report_retry(pending: PendingTask, exc: BaseException) -> None:
    """Show in the Prefect API that a run has lost its process and is run again."""
    # Just after its last state: the next try may begin on a node whose clock is behind, and the API
    # (3.8.8) drops what seems to be older than the state it has.
    state: State[Any] = AwaitingRetry(
        message=f"Run again by infra_retries. {describe(exc)}", timestamp=_LONG_AGO
    )
    report(pending, state, time.monotonic(), must_exist=True)
    pending.retried_at = None if state.timestamp == _LONG_AGO else state.timestamp


def report_again(pending: PendingTask, end: TaskEnd, until: float | None) -> None:
    """Repeat the end of a run that was run again, with a time that the API takes."""
    state = end.restore(None)
    state.id = uuid4()  # the API has an event with the other
    report(pending, state, until, overrules=True)


def seems_older_than_retry(pending: PendingTask, end: TaskEnd) -> bool:
    """Return whether the API drops a run's end, because the clock of its node is behind."""
    retried_at = pending.retried_at
    return retried_at is not None and end.restore(None).timestamp <= retried_at
