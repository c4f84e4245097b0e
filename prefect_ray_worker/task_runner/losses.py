"""What became of a task whose process could not tell: in words, and in the Prefect API."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun, TaskRunPolicy
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger
from prefect.states import AwaitingRetry, Cancelled, Crashed, Pending
from prefect.utilities.engine import emit_task_run_state_change_event

from prefect_ray_worker.task_runner.calls import Flight

_log = get_logger("task_runner.ray")

# The events of a task are on their way for a moment.
_KNOWN_SECONDS = 1.5
_ASK_SECONDS = 0.2


def describe(exc: BaseException) -> str:
    """Say in words why Ray has no outcome of a task."""
    from ray import exceptions as ray

    cause = getattr(exc, "cause", None)
    if isinstance(exc, ray.RayTaskError) and isinstance(cause, BaseException):
        exc = cause
    said = str(exc).strip()
    match exc:
        case ray.OutOfMemoryError():
            why = (
                "Ray killed the task's process because its node ran out of memory. Ask for "
                "`memory` in remote_options, or for more CPUs, so that fewer tasks share a node"
            )
        case ray.NodeDiedError():
            why = "The node that the task ran on has died"
        case ray.WorkerCrashedError():
            why = (
                "The process of the task has died: it was killed, has crashed (a segmentation "
                "fault, for example) or has exited"
            )
        case ray.RuntimeEnvSetupError():
            why = "Ray could not set up the runtime environment of the task"
        case ray.ObjectLostError():
            why = "A result that the task needs is lost with its node or its owner"
        case ray.TaskUnschedulableError():
            why = "Ray can place the task nowhere"
        case ray.TaskPlacementGroupRemoved():
            why = "The placement group of the task was removed"
        case _:
            why = "Ray could not run the task"
    return f"{why} ({type(exc).__name__}: {said})"


def is_infrastructure(exc: BaseException) -> bool:
    """Say whether running the task again could help: its process or its node has gone."""
    from ray import exceptions as ray

    return isinstance(exc, (ray.WorkerCrashedError, ray.NodeDiedError, ray.OutOfMemoryError))


def is_cancelled(exc: BaseException) -> bool:
    """Say whether Ray has cancelled the task."""
    from ray import exceptions as ray

    return isinstance(exc, ray.TaskCancelledError)


def lost_state(flight: Flight, exc: BaseException, *, cancelling: bool) -> State[Any]:
    """Return the final state of a run whose process did not say one.

    Args:
        flight: The run.
        exc: What Ray says.
        cancelling: Whether we have cancelled it.
    """
    if cancelling or is_cancelled(exc):
        state: State[Any] = Cancelled(
            message="The task was cancelled with its flow, before it could end by itself."
        )
    else:
        state = Crashed(message=describe(exc))  # whoever asks for the result gets a CrashedRun
    state.state_details.task_run_id = flight.future.task_run_id
    state.state_details.flow_run_id = flight.flow_run_id
    return state


def report(
    flight: Flight, state: State[Any], *, must_exist: bool = False, overrules: bool = False
) -> None:
    """Tell the Prefect API of a state that the task's process could not tell of.

    Args:
        flight: The run.
        state: The state.
        must_exist: Whether a run that Prefect does not know shall stay unknown to it.
        overrules: Whether the state is to follow a final one of the task's process.
    """
    seconds = 0.0 if must_exist else _KNOWN_SECONDS
    known = _read(flight.future.task_run_id, seconds, final=overrules)
    if known is None:
        if must_exist:
            return
        known = _never_seen(flight)
    before = known.state or Pending()
    if before.is_final() and not overrules:
        return
    # The API keeps the state with the latest time, and clocks of nodes differ.
    latest = max(state.timestamp, before.timestamp + timedelta(microseconds=1))
    state.timestamp = latest
    known.state = state
    known.end_time = cast("Any", latest)
    emit_task_run_state_change_event(task_run=known, initial_state=before, validated_state=state)


def _read(task_run_id: UUID, seconds: float, *, final: bool) -> TaskRun | None:
    deadline = time.monotonic() + seconds
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
            if known or time.monotonic() >= deadline:
                return run
            time.sleep(_ASK_SECONDS)


def _never_seen(flight: Flight) -> TaskRun:
    """Make up the run as the engine would have: it has died before it could say anything."""
    task, run_id = flight.task, flight.future.task_run_id
    state: State[Any] = Pending(timestamp=datetime.now(UTC) - timedelta(milliseconds=1))
    return TaskRun(
        id=run_id,
        name=f"{task.name}-{str(run_id)[-3:]}",
        flow_run_id=flight.flow_run_id,
        task_key=task.task_key,
        dynamic_key=str(run_id),
        task_version=task.version,
        empirical_policy=TaskRunPolicy(
            retries=task.retries,
            retry_delay=task.retry_delay_seconds,
            retry_jitter_factor=task.retry_jitter_factor,
        ),
        tags=sorted(flight.tags),
        task_inputs=cast("Any", {k: list(v) for k, v in flight.inputs.dependencies.items()}),
        expected_start_time=cast("Any", state.timestamp),
        state=state,
        state_id=state.id,
        state_type=state.type,
        state_name=state.name,
    )


def report_retry(flight: Flight, exc: BaseException) -> None:
    """Show in the Prefect API that a run has lost its process and is run again."""
    state: State[Any] = AwaitingRetry(message=f"Run again by infra_retries. {describe(exc)}")
    report(flight, state, must_exist=True)
