"""Wrap every private or undocumented Prefect API that we use.

Check this file after each Prefect upgrade. `tests/unit/prefect_api/test_compat.py` names each API
that Prefect has removed.
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
    """Return the canonical name of the setting that an environment variable sets.

    Many settings have an alias: `PREFECT_TASK_DEFAULT_RETRIES` returns
    `PREFECT_TASKS_DEFAULT_RETRIES`. Any other variable is returned unchanged.
    """
    return _names_of_settings().get(name, name)


@cache
def _names_of_settings() -> dict[str, str]:
    """Map each variable that sets a setting to the setting's canonical name.

    Prefect does not document the models under `Settings` or their aliases (read from 3.8.8).
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
    """Continue a run without its metrics endpoint if the endpoint's port is taken.

    Each run context starts the endpoint if `PREFECT_CLIENT_METRICS_ENABLED` is set. It fails with
    `OSError` if another run on the node uses the port (`prefect.context`, 3.8.8).
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
    """Disable the metrics endpoint, for whose port task processes would compete (3.8.8)."""
    from prefect import context as module

    context: Any = module
    context.start_client_metrics_server = _start_nothing


def _start_nothing() -> None:
    return None


def exit_stack(worker: "BaseWorker[Any, Any, Any]") -> "AsyncExitStack":
    """Return the stack that `BaseWorker.setup` fills and `teardown` exits (3.8.8).

    A context entered before `super().setup()` outlives the worker's runs; no hook allows this.
    """
    return worker._exit_stack  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def runs_task_group(worker: "BaseWorker[Any, Any, Any]") -> "TaskGroup":
    """Return the task group of the worker's runs, which `teardown` waits for (3.8.8).

    Tasks in this group can use Prefect's client until they end. A task group of our own could not
    exit after the runs end and before the client closes.
    """
    group = worker._runs_task_group  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if group is None:
        raise RuntimeError("Set up the worker first.")
    return group


async def read_work_pool(worker: "BaseWorker[Any, Any, Any]") -> None:
    """Load a worker's pool without a heartbeat, which would mark the worker online (3.8.8)."""
    pool = await worker.client.read_work_pool(worker._work_pool_name)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    worker._record_work_pool_snapshot(pool)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def worker_logger(worker: "BaseWorker[Any, Any, Any]") -> "Logger | LoggerAdapter[Logger]":
    """Return the worker's own logger, which also logs to its page in the UI (3.8.8)."""
    return worker._logger  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def work_queues(worker: "BaseWorker[Any, Any, Any]") -> frozenset[str]:
    """Return the queues that a worker polls; an empty set means all of its pool (3.8.8)."""
    return frozenset(worker._work_queues)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def related_resources(
    worker: "BaseWorker[Any, Any, Any]", configuration: "BaseJobConfiguration"
) -> "list[RelatedResource]":
    """Return the run, flow, tags, pool, worker and so on that Prefect's events name (3.8.8)."""
    return worker._event_related_resources(configuration, include_self=True)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


Intent = Literal["cancel", "reschedule", "relinquish"]
"""Why a flow must end (`prefect._internal.attempt_control.Intent`, 3.8.8)."""


def set_termination_intent(intent: Intent) -> None:
    """Tell this process's flow engine what the next `TerminationSignal` means.

    The engine reads the intent from `prefect._internal.control_listener` (3.8.8). Prefect's own
    supervisor process sends it there over a socket; our supervisor sets it from the same process.
    """
    from prefect._internal import control_listener

    control_listener._set_intent(intent)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


async def prepare_workspace(flow_run_id: UUID, folder: "Path") -> str:
    """Run a deployment's pull steps, enter their directory and return the flow's entrypoint.

    `prefect flow-run execute` does this in a separate process (3.8.8); this function does it in
    the current one.
    """
    from prefect.runner._workspace_resolver import prepare_workspace_for_flow_run

    workspace = await prepare_workspace_for_flow_run(flow_run_id, folder)
    return workspace.runtime_entrypoint


def load_flow(flow_run: "FlowRun") -> "Flow[..., Any]":
    """Load the flow of `PREFECT__FLOW_ENTRYPOINT`, as `prefect.engine` does (3.8.8)."""
    from prefect.flow_engine import load_flow as load

    return load(flow_run)


def do_not_join_heartbeats() -> None:
    """End runs without waiting for their heartbeat thread, which sleeps 1 s at a time.

    `flow_engine._send_heartbeats` (3.8.8) joins this daemon thread for sync flows, but not for
    async ones. The thread checks before each heartbeat whether the run has ended.
    """
    from prefect import flow_engine

    beat = getattr(flow_engine, "_send_heartbeats", None)
    if beat is not None:
        flow_engine._send_heartbeats = partial(beat, join_on_exit=False)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def end_task_threads(end: "Callable[[int], None]", *, within: float) -> None:
    """Make `ThreadPoolTaskRunner.cancel_all` interrupt running tasks instead of waiting for them.

    Prefect's own `cancel_all` (3.8.8) waits until every started task is done, so a cancelled run
    would continue for as long as its longest task.

    Args:
        end: Interrupts the thread with the given id.
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
    """Call a function in each process that a `ProcessPoolTaskRunner` starts from now on.

    Extends Prefect's own initializer, which runs first (3.8.8): `initializer` is the user's.

    Args:
        prepare: The function. It must be picklable.
    """
    from prefect import task_runners

    global _initialize_process  # noqa: PLW0603 (one initializer per process)
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
    """Return the metrics context that `prefect.engine` opens around a run (3.8.8)."""
    from prefect._internal.metrics import RunMetrics

    return RunMetrics(flow_run, flow)


def drive_flow_result(flow: "Flow[..., Any]", result: object) -> None:
    """Run the result of `run_flow` for async and generator flows (`prefect.engine`, 3.8.8)."""
    from prefect.engine import (
        _drive_run_flow_result,  # pyright: ignore[reportPrivateUsage]
    )

    _drive_run_flow_result(flow, result)


def new_run_id() -> UUID:
    """Return a new task run id in Prefect's format, which sorts by time (3.8.8)."""
    from prefect._internal.uuid7 import uuid7

    return uuid7()


def raise_if_suspended() -> None:
    """Stop the flow here if its run was asked to suspend.

    Every Prefect future does this after a wait (`prefect/_flow_run_suspension.py`, 3.8.8). Does
    nothing on Prefect versions without this mechanism.
    """
    try:
        from prefect._flow_run_suspension import raise_if_flow_run_suspension_requested
    except ImportError:
        return
    raise_if_flow_run_suspension_requested()


def crashed_state(exc: BaseException) -> "State[Any]":
    """Return the state that the engine sets when this exception ends a run (3.8.8)."""
    from prefect._internal.states import exception_to_crashed_state_sync

    return exception_to_crashed_state_sync(exc)


def tap_events(take: "Callable[[Event], None]") -> None:
    """Pass all events of this process to a function instead of Prefect's sender.

    `emit_event` (3.8.8) uses `EventsWorker.instance()` only if its client has one of a few types.
    Ours is the type for Prefect's own process pool, which also forwards events to another sender.
    """
    from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient

    class Tap:
        client_type = ProcessPoolForwardingEventsClient

        @staticmethod
        def send(event: "Event") -> None:
            take(event)

    global _untapped  # noqa: PLW0603 (one EventsWorker per process)
    _untapped = _untapped or EventsWorker.instance

    def instance(*_: object, **__: object) -> type[Tap]:
        return Tap

    setattr(EventsWorker, "instance", instance)  # noqa: B010 (it is of another type)


_untapped: "Callable[..., Any] | None" = None


def send_event_by_websocket(event: bytes) -> None:
    """Send an event through Prefect's own sender, even after `tap_events`."""
    from prefect.events.schemas.events import Event
    from prefect.events.worker import EventsWorker

    (_untapped or EventsWorker.instance)().send(Event.model_validate_json(event))


def await_events_sent(seconds: float) -> None:
    """Wait until Prefect's own event sender has sent its queue (`_QueueServiceBase`, 3.8.8).

    Waits up to `seconds` for each sender. Prefect's `wait_until_empty` has no timeout.
    """
    from prefect.events.worker import EventsWorker

    # `_instances` holds services of all kinds.
    services: list[Any] = list(EventsWorker._instances.values())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    for worker in services:
        if isinstance(worker, EventsWorker):
            left = worker._queue  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            with left.all_tasks_done:
                left.all_tasks_done.wait_for(lambda: not left.unfinished_tasks, seconds)  # noqa: B023


def replace_event_of_waits(event: "type[threading.Event]") -> None:
    """Make `wait` and `as_completed` of `prefect.futures` block on events of another class.

    Both look up `threading.Event` in their module (3.8.8). Prefect offers no other way to detect
    that they block.
    """
    from prefect import futures

    class Threading:
        Event = event

        def __getattr__(self, name: str) -> Any:
            return getattr(threading, name)

    setattr(futures, "threading", Threading())  # noqa: B010 (it is of another type)


def skip_unread_cache_keys() -> None:
    """Compute no cache key for a task that has no cache policy and persists nothing.

    Prefect (3.8.8) gives such a task the policy `DEFAULT` and computes its key, a JSON or a pickle
    of all parameters with a hash over it: 0.3 s for 50 MB. Only a persisted result could ever be
    found by the key. A task with `persist_result=False` has none either.
    """
    from prefect.cache_policies import DEFAULT
    from prefect.context import TaskRunContext
    from prefect.task_engine import BaseTaskRunEngine

    compute = BaseTaskRunEngine.compute_transaction_key

    def compute_if_read(self: "BaseTaskRunEngine[Any, Any]") -> str | None:
        context = TaskRunContext.get()
        if context and not context.persist_result and self.task.cache_policy == DEFAULT:
            return None
        return compute(self)

    BaseTaskRunEngine.compute_transaction_key = compute_if_read


def saved_block_id(block: object) -> UUID | None:
    """Return the id of the document that a block was saved as, or None (3.8.8)."""
    return getattr(block, "_block_document_id", None)


OVERRIDDEN = (
    "_initiate_run",
    "_submit_scheduled_flow_runs",
    "_documentation_url",
    "_logo_url",
    "_description",
)
"""Private members of `BaseWorker` (3.8.8) that `RayWorker` overrides; no public way exists."""

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
"""Prefect names that the functions above use (3.8.8); a test checks that each still exists."""
