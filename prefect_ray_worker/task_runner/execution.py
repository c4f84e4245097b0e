"""The function that Ray runs: one task run, in a process of the cluster."""

import logging
import socket
from asyncio import CancelledError
from contextvars import Context
from functools import cache
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Crashed
from prefect.task_engine import run_task_async, run_task_sync
from prefect.tasks import Task

from prefect_ray_worker.prefect_api.compat.tasks import crashed_state, replace_state_of_crashes
from prefect_ray_worker.task_runner.call import Call
from prefect_ray_worker.task_runner.inputs import fill_slots
from prefect_ray_worker.task_runner.interrupts import Interrupts
from prefect_ray_worker.task_runner.options import inherit
from prefect_ray_worker.task_runner.pickling import Blob, unpack
from prefect_ray_worker.task_runner.plain import to_ray, unpack_plain
from prefect_ray_worker.task_runner.process import TaskProcess
from prefect_ray_worker.task_runner.task_end import NOT_LOADED, TaskEnd
from prefect_ray_worker.task_runner.telemetry import telemetry

INTERRUPTED = "The task was interrupted: its flow has failed, timed out or been cancelled."


def run(content: bytes, refs: list[Any], *arguments: Any) -> tuple[Any, Any, Any]:
    """Run a task; return its end, its packed result, and the end again with its telemetry.

    Each as `plain.to_ray` has it.

    Args:
        content: The pickled context of the flow run, the pickled task, its globals, and this run.
        refs: The object references in that.
        *arguments: The ends and results of upstream runs, and the values of other references.
    """
    Interrupts.begin()
    flow_context, task, own, call = unpack_plain(content, refs)
    telemetry(in_task_process=True).hold(is_held=call.holds_telemetry)
    try:
        state = _run(flow_context, (task, own), call, arguments)
    except KeyboardInterrupt as exc:  # cancelled before the engine had it
        state = _crashed(exc)
    finally:
        TaskProcess.has_ended()
        Interrupts.disarm()
    state.state_details.task_run_id = call.task_run_id
    end, packed = TaskEnd.of(state)
    batch = telemetry(in_task_process=True).take()
    return to_ray(end), to_ray(packed), to_ray((end, batch))


def _run(
    flow_context: Blob,
    blobs: tuple[Blob, Blob | None],
    call: Call,
    arguments: tuple[Any, ...],
) -> State[Any]:
    try:
        process = TaskProcess.of(flow_context)
        context = process.context.copy()
        task = context.run(process.task, *blobs)
        engine = context.run(_engine_arguments, process, task, call, arguments)
    except Exception as exc:  # imports run any code
        return _not_loaded(exc)
    _cancel_what_is_interrupted()
    Interrupts.arm()
    try:
        return _engine(process, context, task, engine)
    except BaseException as exc:  # what the engine re-raises, it has reported
        return _crashed(exc)


def _engine(
    process: TaskProcess, context: Context, task: Task[Any, Any], arguments: dict[str, Any]
) -> State[Any]:
    if task.isasync:
        return process.run_async(context, run_task_async(task, **arguments))
    return context.run(run_task_sync, task, **arguments)  # pyright: ignore[reportReturnType]


def _engine_arguments(
    process: TaskProcess, task: Task[Any, Any], call: Call, arguments: tuple[Any, ...]
) -> dict[str, Any]:
    fill_slots([slot.value(arguments) for slot in call.slots])
    inherit(unpack(call.inherited) if call.inherited is not None else {})
    return {
        "task_run_id": call.task_run_id,
        "parameters": call.unpacked_parameters(arguments),
        "wait_for": unpack(call.wait_for) if call.wait_for is not None else None,
        "dependencies": call.dependencies,
        "return_type": "state",
        "context": {
            "flow_run_context": process.flow_run_context(),
            "deployment_id": process.content.deployment_id,
            "deployment_parameters": process.content.deployment_parameters,
            **(unpack(call.context) if call.context is not None else {}),
        },
    }


@cache
def _cancel_what_is_interrupted() -> None:
    """Have the engines of this process end an interrupted task as Cancelled, without an error.

    Otherwise they report a crash and log two errors. With a flow that fails, its cause would be
    one among many.
    """
    replace_state_of_crashes(_state_if_interrupted)
    logging.getLogger("prefect.task_runs").addFilter(_is_wanted)


def _state_if_interrupted() -> State[Any] | None:
    return Cancelled(message=INTERRUPTED) if Interrupts.has_hit else None


def _is_wanted(record: logging.LogRecord) -> bool:
    if Interrupts.has_hit and record.levelno == logging.ERROR:
        if record.msg == f"Crash detected! {INTERRUPTED}":
            return False
        if str(record.msg).startswith("Finished in state Cancelled("):
            record.levelno, record.levelname = logging.INFO, "INFO"
    return True


def _crashed(exc: BaseException) -> State[Any]:
    if Interrupts.has_hit and isinstance(exc, (KeyboardInterrupt, CancelledError)):
        return Cancelled(message=INTERRUPTED)
    if isinstance(exc, CancelledError):
        return Crashed(message="Execution was cancelled by the runtime environment.")
    state = crashed_state(exc)
    if not isinstance(exc, Exception):
        # Whoever asks for the result must not exit, or be interrupted, as well.
        state.data = None
    return state


def _not_loaded(exc: Exception) -> State[Any]:
    hint = ""
    if isinstance(exc, ImportError):
        hint = (
            ". The module is not on that node: see whether the flow's folder is shipped "
            "(docs/how-to/fan-out.md), or install it there."
        )
    message = f"The task could not be loaded on {socket.gethostname()}: {type(exc).__name__}: {exc}"
    return Crashed(name=NOT_LOADED, message=message + hint)
