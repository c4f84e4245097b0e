"""`TaskProcess`: what a process of the cluster keeps between the tasks of one flow run.

Settings, clients and contexts cost 60 ms of CPU to make and are the same for every task of a
flow run: they are made for the first and kept.
"""

import asyncio
import os
import sys
from collections import OrderedDict
from contextvars import Context
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from prefect.client.schemas.objects import FlowRun
from prefect.context import AsyncClientContext, SettingsContext, SyncClientContext
from prefect.events.schemas.events import Event
from prefect.logging.handlers import set_api_log_sink
from prefect.results import ResultStore, default_cache
from prefect.tasks import Task

from prefect_ray_worker.prefect_api.compat.clients import serve_no_client_metrics, share_tls_context
from prefect_ray_worker.prefect_api.compat.events import tap_events, untap_events
from prefect_ray_worker.prefect_api.compat.tasks import skip_unread_cache_keys
from prefect_ray_worker.prefect_api.compat.transactions import note_transactions_of_engines
from prefect_ray_worker.prefect_api.marking import install_in_ray_process
from prefect_ray_worker.task_runner import modules
from prefect_ray_worker.task_runner.call import FlowContext
from prefect_ray_worker.task_runner.interrupts import Interrupts, interruptible
from prefect_ray_worker.task_runner.orphans import mark_children
from prefect_ray_worker.task_runner.pickling import Blob, pack_whole, unpack
from prefect_ray_worker.task_runner.related import attach_related, keep_related
from prefect_ray_worker.task_runner.telemetry import Telemetry, forget_telemetry, telemetry
from prefect_ray_worker.task_runner.waiting import OpenRefs

_KEPT_FLOW_RUNS = 4
_KEPT_TASKS = 256
# They may be large.
_KEPT_GLOBALS = 4


class TaskProcess:
    """One flow run, in one process of the cluster.

    Args:
        flow_context: Pickled by `context.ContextPickler`.

    Attributes:
        blob: The pickled flow context, for nested submits.
        context: With settings and clients entered; tasks run in copies of it.
        settings: Those of the context.
        flow_run: What the arguments for the flow run's context are made of.
        content: The flow context.
    """

    _kept: ClassVar["OrderedDict[bytes, TaskProcess]"] = OrderedDict()
    _tasks: ClassVar["OrderedDict[bytes, Task[Any, Any]]"] = OrderedDict()
    _globals: ClassVar["OrderedDict[bytes, modules.Globals]"] = OrderedDict()

    def __init__(self, flow_context: Blob) -> None:
        self.blob = flow_context
        self.content: FlowContext = flow_context.load()
        install_in_ray_process(self.content.seal)
        _see(self.content.paths)
        own = self.content.own.below(Path.cwd())
        modules.use(own)
        own.load()
        self.context = Context()
        self.settings = self.context.run(self._enter, self.content.settings)
        self.flow_run = self._flow_run(unpack(self.content.flow_run))
        self.context.run(keep_related, self.content.related)
        self._runner: asyncio.Runner | None = None
        self._async_context: Context | None = None

    @classmethod
    def of(cls, flow_context: Blob) -> "TaskProcess":
        """Return what this process keeps for a flow context."""
        kept = cls._kept.get(flow_context.digest)
        if kept is None:
            _prepare()
            OpenRefs.in_task_process()
            mark_children()
            Interrupts.install()
            kept = cls._kept[flow_context.digest] = cls(flow_context)
            if len(cls._kept) > _KEPT_FLOW_RUNS:
                cls._kept.popitem(last=False)
        cls._kept.move_to_end(flow_context.digest)
        _present.process, _present.is_in_task = kept, True
        return kept

    @classmethod
    def around(cls, flow_run_id: object, settings: object) -> "TaskProcess | None":
        """Return what the present task runs in, unless its flow run or settings are others."""
        for kept in cls._kept.values():
            same_run = kept.flow_run and kept.flow_run["flow_run"].id == flow_run_id
            if same_run and kept.settings is settings:
                return kept
        return None

    @classmethod
    def present(cls) -> "TaskProcess | None":
        """Return what the present task runs in; None in a driver."""
        return _present.process

    @classmethod
    def is_in_task(cls) -> bool:
        """Return whether a task runs here now, and not a function or an actor of a user's."""
        return _present.is_in_task

    @classmethod
    def has_ended(cls) -> None:
        """Note that the present task has ended: Ray may use the process for something else."""
        _present.is_in_task = False

    @classmethod
    def task(cls, blob: Blob, globals_blob: Blob | None) -> Task[Any, Any]:
        """Return a task, unpickled once, and give its globals the values of the driver."""
        task: Task[Any, Any] = _kept(cls._tasks, blob, _KEPT_TASKS)
        if globals_blob is not None:
            found = _kept(cls._globals, globals_blob, _KEPT_GLOBALS)
            modules.set_globals(found, pack_whole, unpack)
        return task

    def flow_run_context(self) -> dict[str, Any]:
        """Return the arguments for the flow run's context in one task.

        Prefect's result store keeps up to 1,000 results in memory (3.8.8). Kept for longer than a
        task, they would hide what other processes have stored since.
        """
        if not self.flow_run:
            return {}
        store = self.flow_run["result_store"].model_copy()
        # Not by its name, as a field that was set: those are pickled for nested submits.
        vars(store)["cache"] = default_cache()
        return {**self.flow_run, "result_store": store}

    def run_async(self, context: Context, coroutine: Any) -> Any:
        """Run a coroutine in the process's event loop, which outlives it; nothing else of it does.

        Args:
            context: A copy of `self.context`.
            coroutine: What to run.
        """
        if self._runner is None:
            self._runner = asyncio.Runner()
            self._async_context = self.context.copy()
            self._runner.run(_enter_async_client(), context=self._async_context)
        assert self._async_context is not None
        for variable, value in self._async_context.items():
            if variable not in context:
                context.run(variable.set, value)
        loop = self._runner.get_loop()
        before = asyncio.all_tasks(loop)
        try:
            return self._runner.run(interruptible(coroutine), context=context)
        finally:
            left = asyncio.all_tasks(loop) - before
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    @staticmethod
    def _enter(settings: dict[str, Any]) -> SettingsContext | None:
        if settings:
            SettingsContext(**settings).__enter__()
        SyncClientContext().__enter__()
        return SettingsContext.get()

    @staticmethod
    def _flow_run(content: dict[str, Any]) -> dict[str, Any]:
        if not content:
            return {}
        # Validated once: a context takes instances as they are.
        return {
            **content,
            "flow_run": FlowRun.model_validate(content["flow_run"]),
            "result_store": ResultStore.model_validate(content["result_store"]),
        }


def _kept(kept: "OrderedDict[bytes, Any]", blob: Blob, most: int) -> Any:
    """Return the value of a blob, unpickled once while it is among those used last."""
    value = kept.get(blob.digest)
    if value is None:
        value = kept[blob.digest] = blob.load()
        if len(kept) > most:
            kept.popitem(last=False)
    kept.move_to_end(blob.digest)
    return value


class _Present:
    process: TaskProcess | None = None
    is_in_task = False


_present = _Present()


@cache
def _prepare() -> None:
    collect_telemetry()
    serve_no_client_metrics()
    share_tls_context()
    skip_unread_cache_keys()
    note_transactions_of_engines()


@cache
def collect_telemetry() -> None:
    """Collect the events and logs of this process, which must be one of Ray's.

    Prefect's own senders serve the processes that are forked from it.
    """
    os.register_at_fork(after_in_child=_leave_to_prefect)
    box = telemetry(in_task_process=True)
    set_api_log_sink(lambda log: box.put(logs=[log]))
    tap_events(lambda event: _post(box, event))


def _leave_to_prefect() -> None:
    """Stop collecting in a forked process: it has our sender, but not the sender's thread."""
    set_api_log_sink(None)
    untap_events()
    forget_telemetry()


def _post(box: Telemetry, event: Event) -> None:
    attach_related(event)
    box.put(events=[event.model_dump_json().encode()])


def _see(paths: list[str]) -> None:
    """Let imports find the flow's folder: where it was shipped to, or where it is."""
    for path in reversed(paths):
        # Relative ones are below the `working_dir` that Ray has put us into.
        folder = str(Path.cwd() / path)
        if folder not in sys.path and Path(folder).is_dir():
            sys.path.insert(0, folder)


async def _enter_async_client() -> None:
    await AsyncClientContext().__aenter__()
