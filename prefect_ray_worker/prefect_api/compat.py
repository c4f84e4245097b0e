"""Every name of Prefect that is not promised to us, in one place.

After an upgrade of Prefect, this is the file to check; `tests/unit/prefect_api/test_compat.py`
fails by name when one has gone.
"""

import logging
import sys
import threading
import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from prefect.settings import Settings, get_current_settings
from prefect.settings.base import PrefectBaseSettings
from pydantic import AliasChoices

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager, AsyncExitStack
    from logging import Logger, LoggerAdapter
    from pathlib import Path

    from anyio.abc import TaskGroup
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.events import RelatedResource
    from prefect.events.schemas.events import Event
    from prefect.flows import Flow
    from prefect.workers.base import BaseJobConfiguration, BaseWorker


def setting_of_variable(name: str) -> str:
    """Return Prefect's own name for the setting that an environment variable sets.

    `PREFECT_TASKS_DEFAULT_RETRIES` for `PREFECT_TASK_DEFAULT_RETRIES`: many settings have a second
    name. Any other variable is returned as it is.
    """
    return _names_of_settings().get(name, name)


@cache
def _names_of_settings() -> dict[str, str]:
    """Return each variable that sets a setting, with the setting's own name.

    The tree of models under `Settings` and its aliases are not documented (read from 3.8.8).
    """
    names: dict[str, str] = {}

    def read(model: type[PrefectBaseSettings]) -> None:
        prefix = str(model.model_config.get("env_prefix") or "")
        for field, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, PrefectBaseSettings):
                read(kind)
                continue
            alias, own = info.validation_alias, f"{prefix}{field}".upper()
            choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
            names.update({c.upper(): own for c in choices if isinstance(c, str)} | {own: own})

    read(Settings)
    return names


def serve_client_metrics_if_possible() -> None:
    """Let a run go on without its metrics endpoint where the endpoint's port is taken.

    Each run context starts the endpoint if `PREFECT_CLIENT_METRICS_ENABLED` is set, and fails with
    `OSError` if another run on the node has the port (`prefect.context`, 3.8.8).
    """
    from prefect import context as module

    context: Any = module
    start = context.start_client_metrics_server

    def start_if_possible() -> None:
        try:
            start()
        except OSError as exc:
            context.start_client_metrics_server = _start_nothing
            logging.getLogger("prefect.flow_runs").warning(
                "This run serves no client metrics: port %s of the node cannot be used (%s). Give "
                "runs on one node a PREFECT_CLIENT_METRICS_PORT each, or unset "
                "PREFECT_CLIENT_METRICS_ENABLED.",
                get_current_settings().client.metrics.port,
                exc,
            )

    context.start_client_metrics_server = start_if_possible


def serve_no_client_metrics() -> None:
    """Start no metrics endpoint in this process, whatever the settings say.

    For the processes of tasks: all of a node would fight with the flow's for one port (3.8.8).
    """
    from prefect import context as module

    context: Any = module
    context.start_client_metrics_server = _start_nothing


def _start_nothing() -> None:
    return None


def exit_stack(worker: "BaseWorker[Any, Any, Any]") -> "AsyncExitStack":
    """Return the stack that `BaseWorker.setup` fills and `teardown` leaves (3.8.8).

    What is entered before `super().setup()` outlives the worker's runs; there is no hook for it.
    """
    return worker._exit_stack  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def runs_task_group(worker: "BaseWorker[Any, Any, Any]") -> "TaskGroup":
    """Return the task group of the worker's runs, which `teardown` waits for (3.8.8).

    What it starts has Prefect's client to its end; no group of ours can be left after the runs and
    before the client.
    """
    group = worker._runs_task_group  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if group is None:
        raise RuntimeError("Set up the worker first.")
    return group


async def read_work_pool(worker: "BaseWorker[Any, Any, Any]") -> None:
    """Have a worker know its pool without a heartbeat, which would make it online (3.8.8)."""
    pool = await worker.client.read_work_pool(worker._work_pool_name)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    worker._record_work_pool_snapshot(pool)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def worker_logger(worker: "BaseWorker[Any, Any, Any]") -> "Logger | LoggerAdapter[Logger]":
    """Return the worker's own logger, which goes to its page in the UI as well (3.8.8)."""
    return worker._logger  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def work_queues(worker: "BaseWorker[Any, Any, Any]") -> frozenset[str]:
    """Return the names of the queues that a worker polls; none means all of its pool (3.8.8)."""
    return frozenset(worker._work_queues)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def related_resources(
    worker: "BaseWorker[Any, Any, Any]", configuration: "BaseJobConfiguration"
) -> "list[RelatedResource]":
    """Return what an event of a run is related to, as Prefect's own worker gives it (3.8.8).

    Flow run, flow, deployment, tags, work pool and worker.
    """
    return worker._event_related_resources(configuration, include_self=True)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


Intent = Literal["cancel", "reschedule", "relinquish"]
"""Why a flow is told to end (`prefect._internal.attempt_control.Intent`, 3.8.8)."""


def set_termination_intent(intent: Intent) -> None:
    """Tell the flow engine of this process what the coming `TerminationSignal` means.

    The engine asks `prefect._internal.control_listener` (3.8.8), which is fed by a socket from
    Prefect's own supervisor process; ours knows it in the process itself.
    """
    from prefect._internal import control_listener

    control_listener._set_intent(intent)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


async def prepare_workspace(flow_run_id: UUID, folder: "Path") -> str:
    """Run a deployment's pull steps and go where they lead; return the flow's entrypoint.

    What `prefect flow-run execute` does in a process of its own (3.8.8), in this one.
    """
    from prefect.runner._workspace_resolver import prepare_workspace_for_flow_run

    workspace = await prepare_workspace_for_flow_run(flow_run_id, folder)
    return workspace.runtime_entrypoint


def load_flow(flow_run: "FlowRun") -> "Flow[..., Any]":
    """Load the flow of `PREFECT__FLOW_ENTRYPOINT`, as `prefect.engine` does (3.8.8)."""
    from prefect.flow_engine import load_flow as load

    return load(flow_run)


def do_not_join_heartbeats() -> None:
    """Spare the end of a run the wait for its heartbeat thread, which sleeps 1 s at a time.

    `flow_engine._send_heartbeats` (3.8.8) joins the thread for sync flows; it is a daemon that
    looks whether the run has ended before each beat, and for async flows nobody waits for it.
    """
    from prefect import flow_engine

    beat = getattr(flow_engine, "_send_heartbeats", None)
    if beat is not None:
        flow_engine._send_heartbeats = partial(beat, join_on_exit=False)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def end_task_threads(end: "Callable[[int], None]", *, within: float) -> None:
    """From now on, have a thread pool of tasks ended where Prefect waits for its tasks.

    `ThreadPoolTaskRunner.cancel_all` (3.8.8) waits until every task that has begun is done: a
    cancelled run would go on for as long as its longest task.

    Args:
        end: Interrupts the thread with an id.
        within: Seconds to wait for the threads afterwards.
    """
    from prefect.task_runners import ThreadPoolTaskRunner

    def cancel_all(self: ThreadPoolTaskRunner[Any]) -> None:
        executor, self._executor = self._executor, None  # pyright: ignore[reportPrivateUsage]
        if executor is None:
            return
        executor.shutdown(wait=False, cancel_futures=True)
        threads = list(executor._threads)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for thread in threads:
            if thread.ident is not None and _runs_a_task(thread.ident):
                end(thread.ident)
        deadline = time.monotonic() + within
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))

    ThreadPoolTaskRunner.cancel_all = cancel_all


def _runs_a_task(ident: int) -> bool:
    frame = sys._current_frames().get(ident)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_globals.get("__name__") != "prefect.task_engine":
        frame = frame.f_back
    return frame is not None


def in_process_pools(prepare: "Callable[[], None]") -> None:
    """From now on, call a function in each process that a `ProcessPoolTaskRunner` starts.

    The runner's `initializer` belongs to its user; Prefect's own comes first (3.8.8).

    Args:
        prepare: The function; it is pickled.
    """
    from prefect import task_runners

    global _initialize_process  # noqa: PLW0603 (there is one such function)
    name = "_initialize_process_pool_worker"
    _initialize_process = _initialize_process or getattr(task_runners, name)
    setattr(task_runners, name, partial(_prepared_process, prepare))


_initialize_process: "Callable[..., None] | None" = None


def _prepared_process(prepare: "Callable[[], None]", *args: object, **kwargs: object) -> None:
    from prefect import task_runners

    name = "_initialize_process_pool_worker"
    (_initialize_process or getattr(task_runners, name))(*args, **kwargs)
    prepare()


def run_metrics(flow_run: "FlowRun", flow: "Flow[..., Any]") -> "AbstractContextManager[Any]":
    """Return the metrics that `prefect.engine` keeps around a run (3.8.8)."""
    from prefect._internal.metrics import RunMetrics

    return RunMetrics(flow_run, flow)


def drive_flow_result(flow: "Flow[..., Any]", result: object) -> None:
    """Run what `run_flow` returned for async and generator flows (`prefect.engine`, 3.8.8)."""
    from prefect.engine import (
        _drive_run_flow_result,  # pyright: ignore[reportPrivateUsage]
    )

    _drive_run_flow_result(flow, result)


def new_run_id() -> UUID:
    """Return an id for a task run as Prefect makes them, sortable by time (3.8.8)."""
    from prefect._internal.uuid7 import uuid7

    return uuid7()


def raise_if_suspended() -> None:
    """Stop the flow here if its run was asked to suspend itself.

    Every future of Prefect's does so after it has waited (`prefect/_flow_run_suspension.py`,
    3.8.8). A Prefect that does not know this way to suspend needs nothing.
    """
    try:
        from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
    except ImportError:
        return
    raise_if_flow_run_suspension_requested()


def crashed_state(exc: BaseException) -> "State[Any]":
    """Return the state that the engine gives a run that ended by this exception (3.8.8)."""
    from prefect._internal.states import exception_to_crashed_state_sync

    return exception_to_crashed_state_sync(exc)


def tap_events(take: "Callable[[Event], None]") -> None:
    """Have all events of this process given to us, and not sent by a worker of its own.

    `emit_event` (3.8.8) sends through `EventsWorker.instance()` if that has one of a few types of
    clients; the one for Prefect's own process pool says the same as we: somebody else sends them.
    """
    from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient

    class Tap:
        client_type = ProcessPoolForwardingEventsClient

        @staticmethod
        def send(event: "Event") -> None:
            take(event)

    global _untapped  # noqa: PLW0603 (there is one EventsWorker)
    _untapped = _untapped or EventsWorker.instance

    def instance(*_: object, **__: object) -> type[Tap]:
        return Tap

    setattr(EventsWorker, "instance", instance)  # noqa: B010 (it is of another type)


_untapped: "Callable[..., Any] | None" = None


def send_event_by_websocket(event: bytes) -> None:
    """Give an event to Prefect's own sender, also where `tap_events` has come before it."""
    from prefect.events.schemas.events import Event
    from prefect.events.worker import EventsWorker

    (_untapped or EventsWorker.instance)().send(Event.model_validate_json(event))


def await_events_sent(seconds: float) -> None:
    """Wait until Prefect's own sender of events has none left (`_QueueServiceBase`, 3.8.8).

    `wait_until_empty` knows no time limit.
    """
    from prefect.events.worker import EventsWorker

    # All kinds of services are in there.
    services: list[Any] = list(EventsWorker._instances.values())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    for worker in services:
        if isinstance(worker, EventsWorker):
            left = worker._queue  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            with left.all_tasks_done:
                left.all_tasks_done.wait_for(lambda: not left.unfinished_tasks, seconds)  # noqa: B023


def replace_event_of_waits(event: "type[threading.Event]") -> None:
    """Have `wait` and `as_completed` of `prefect.futures` block on events of another class.

    They make a `threading.Event` by the name in their module (3.8.8), and offer no other way to
    learn that they block.
    """
    from prefect import futures

    class Threading:
        Event = event

        def __getattr__(self, name: str) -> Any:
            return getattr(threading, name)

    setattr(futures, "threading", Threading())  # noqa: B010 (it is of another type)


OVERRIDDEN = (
    "_initiate_run",
    "_submit_scheduled_flow_runs",
    "_documentation_url",
    "_logo_url",
    "_description",
)
"""Private members of `BaseWorker` (3.8.8) that `RayWorker` defines, as there is no public way."""

READ = (
    "prefect._internal.states:exception_to_crashed_state_sync",
    "prefect._internal.uuid7:uuid7",
    "prefect._internal.control_listener:_set_intent",
    "prefect._internal.metrics:RunMetrics",
    "prefect.context:start_client_metrics_server",
    "prefect.engine:_drive_run_flow_result",
    "prefect.events.worker:EventsWorker._instances",
    "prefect.events.worker:EventsWorker.instance",
    "prefect.events.worker:ProcessPoolForwardingEventsClient",
    "prefect.flow_engine:_send_heartbeats",
    "prefect.flow_engine:load_flow",
    "prefect.futures:threading.Event",
    "prefect.task_runners:ThreadPoolTaskRunner.cancel_all",
    "prefect.task_runners:_initialize_process_pool_worker",
    "prefect.runner._workspace_resolver:prepare_workspace_for_flow_run",
)
"""Where the functions above reach into Prefect (3.8.8), for the test that says what has gone."""
