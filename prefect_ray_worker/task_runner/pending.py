"""`TaskPreparer`: turns submits into calls of a Ray function."""

import time
import weakref
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFlowRunFuture
from prefect.tasks import Task

from prefect_ray_worker.errors import Unpicklable
from prefect_ray_worker.task_runner.call import Call, ReferenceSlot, RunSlot, Slot, ValueSlot
from prefect_ray_worker.task_runner.context import ContextPickler
from prefect_ray_worker.task_runner.futures import DoneFuture, RayTaskFuture
from prefect_ray_worker.task_runner.inputs import Dependencies, Inputs, Source
from prefect_ray_worker.task_runner.modules import globals_of
from prefect_ray_worker.task_runner.options import DEFAULTS, options_for, to_inherit
from prefect_ray_worker.task_runner.parameters import ParameterParts, ParameterPickler, references
from prefect_ray_worker.task_runner.pickling import (
    Blob,
    Packed,
    culprit,
    digest_of,
    pack,
    pack_whole,
)
from prefect_ray_worker.task_runner.plain import pack_plain
from prefect_ray_worker.task_runner.snapshot import TaskSnapshot
from prefect_ray_worker.task_runner.task_end import without_result
from prefect_ray_worker.task_runner.telemetry import telemetry

_RETURNS = 3
# A task that is pickled sooner is pickled for each submit, others for this share of the time.
_QUICK_SECONDS = 0.002
_TIMES_AS_LONG = 20
_NOTHING: dict[str, Any] = {}


@dataclass(eq=False, slots=True)
class PendingTask:
    """A task run that is submitted and has not ended.

    Thousands may wait for their turn: what all tasks have alike is not kept for each.

    Attributes:
        task: The task.
        future: What the user holds.
        sources: What comes through the slots of its parameters.
        with_result: The slots whose result is wanted, and not only that they are done.
        dependencies: What Prefect draws as its upstream runs, for each parameter.
        remote: The function of Ray's with the run's options.
        flow_context: The pickled context of its flow run.
        blob: The pickled task.
        globals_blob: The pickled globals that it can reach; None if there are none.
        parameters: The packed parameters.
        wait_for: The packed upstream runs it waits for.
        submit_context: The pickled context of this submit.
        inherited: The packed options of Ray for nested submits.
        tags: Of the run, for a state that we report ourselves.
        flow_run_id: Likewise.
        telemetry_ref: Reference to the end and its telemetry; None before Ray has the task.
        infra_retries: How often it may be run again after its process has died.
        has_died: Whether a process of it has died, so that it runs, or has run, again.
        retried_at: The time of the state with which the API has it run again.
        given: The upstream runs that Ray was told to wait for.
        given_refs: The references to their results at that time.
    """

    task: Task[Any, Any]
    future: RayTaskFuture[Any]
    sources: tuple[Source, ...]
    with_result: frozenset[int]
    dependencies: Dependencies
    remote: Any
    flow_context: Blob
    blob: Blob
    globals_blob: Blob | None
    parameters: ParameterParts
    wait_for: Packed | None
    submit_context: Packed | None
    inherited: Packed | None
    tags: AbstractSet[str]
    flow_run_id: UUID | None
    telemetry_ref: Any = None
    infra_retries: int = 0
    has_died: bool = False
    retried_at: datetime | None = None
    given: Sequence[RayTaskFuture[Any]] = ()
    given_refs: Sequence[Any] = ()

    @property
    def name(self) -> str:
        """What Ray calls it, in its dashboard and timeline."""
        return f"{self.task.name} {self.future.task_run_id}"

    @property
    def has_lost_upstream(self) -> bool:
        """Whether an upstream run, which Ray was to wait for, will never come from Ray."""
        return any(not source.is_in_ray for source in self.given)

    @property
    def has_rerun_upstream(self) -> bool:
        """Whether an upstream run was given to Ray again: this one had what the first try left."""
        return any(
            source.result_ref is not ref
            for source, ref in zip(self.given, self.given_refs, strict=True)
        )

    def launch(self) -> None:
        """Give the task to Ray; every upstream run has to be there, or done.

        Raises:
            ValueError: For options that Ray does not take.
        """
        arguments: list[Any] = []
        given: list[RayTaskFuture[Any]] = []
        slots = [self._slot(i, source, arguments, given) for i, source in enumerate(self.sources)]
        self.given, self.given_refs = given, [source.result_ref for source in given]
        call = Call(
            task_run_id=self.future.task_run_id,
            parameters=references(self.parameters, arguments),
            wait_for=self.wait_for,
            slots=slots,
            dependencies=self.dependencies,
            context=self.submit_context,
            inherited=self.inherited,
            holds_telemetry=telemetry().is_behind,
        )
        remote = self.remote.options(name=self.name)
        try:
            end, result, self.telemetry_ref = remote.remote(
                *pack_plain((self.flow_context, self.blob, self.globals_blob, call)), *arguments
            )
        except (TypeError, ValueError) as exc:  # some options are looked at only now
            raise ValueError(f"remote_options of {self.name!r}: {exc}") from exc
        self.future.set_refs(end, result)

    def _slot(
        self, index: int, source: Any, arguments: list[Any], given: list[RayTaskFuture[Any]]
    ) -> Slot:
        if not hasattr(source, "task_run_id") and not isinstance(source, State):
            arguments.append(source)
            return ReferenceSlot(len(arguments) - 1)
        if isinstance(source, RayTaskFuture) and source.is_in_ray:
            given.append(source)
            return self._run_slot(index, source, arguments)
        return ValueSlot(pack(self._ended(source, with_result=index in self.with_result)))

    @staticmethod
    def _ended(source: Any, *, with_result: bool) -> Any:
        """Return how a run has ended that is not on the cluster: a state, or a future for it."""
        if isinstance(source, PrefectFlowRunFuture):
            # Ours: the others have no `task_run_id` (3.8.8).
            settled: Any = getattr(source, "state_after_callback", None)
            state: Any = source.state if settled is None else settled()
            return state if with_result else without_result(state)
        if isinstance(source, State):
            return source if with_result else without_result(source)
        source.wait()  # it is done: without this, Prefect's own futures ask the API for their state
        state = source.state if with_result else without_result(source.state)
        return DoneFuture(source.task_run_id, state)

    def _run_slot(self, index: int, source: RayTaskFuture[Any], arguments: list[Any]) -> Slot:
        # In this order: the reference goes when the end has come.
        end_ref, end = source.end_ref, source.end
        if end_ref is not None:
            arguments.append(end_ref)
            end = len(arguments) - 1
        assert end is not None
        result = None
        if index in self.with_result:
            arguments.append(source.result_ref)
            result = len(arguments) - 1
        return RunSlot(source.task_run_id, end, result)


@dataclass(frozen=True)
class _PickledTask:
    blob: Blob
    globals_blob: Blob | None
    took: float
    good_until: float
    snapshot: TaskSnapshot


class TaskPreparer:
    """Prepare the submits of one started runner.

    Args:
        contexts: Pickles the contexts of the submits.
    """

    def __init__(self, contexts: ContextPickler) -> None:
        self._contexts = contexts
        self._parameters = ParameterPickler()
        self._remotes: dict[bytes, Any] = {}
        self._tasks: weakref.WeakKeyDictionary[Any, _PickledTask] = weakref.WeakKeyDictionary()
        # Variants of one task (`with_options`) and tasks of one module have their globals alike.
        self._blobs: weakref.WeakValueDictionary[bytes, Blob] = weakref.WeakValueDictionary()

    def prepare(
        self, task: Task[Any, Any], future: RayTaskFuture[Any], inputs: Inputs
    ) -> PendingTask:
        """Pickle what a task run needs.

        Raises:
            Unpicklable: For a task or a parameter that cannot be pickled; names the culprit.
            ValueError: For options that Ray does not take.
        """
        from prefect.context import FlowRunContext, TagsContext

        flow_run = FlowRunContext.get()
        tags = TagsContext.get().current_tags
        pickled = self._pickled(task)
        return PendingTask(
            task=task,
            future=future,
            sources=tuple(inputs.sources),
            with_result=frozenset(inputs.with_result),
            dependencies=inputs.dependencies or _NOTHING,
            remote=self.remote(options_for(task)),
            flow_context=self._contexts.for_flow_run(),
            blob=pickled.blob,
            globals_blob=pickled.globals_blob,
            parameters=self._parameters.pack(task, inputs.parameters),
            wait_for=pack(inputs.wait_for) if inputs.wait_for is not None else None,
            submit_context=self._contexts.for_submit(task, future.task_run_id, inputs.upstream),
            inherited=pack_whole(inherited) if (inherited := to_inherit()) else None,
            tags=task.tags | tags if tags else task.tags,
            flow_run_id=flow_run.flow_run.id if flow_run and flow_run.flow_run else None,
        )

    def remote(self, options: Mapping[str, Any]) -> Any:
        """Return the function of Ray's with these options, always the same one.

        A new function for each submit would be exported for each, and could reuse no lease.
        """
        import ray

        from prefect_ray_worker.task_runner.execution import run

        key = b"" if options == DEFAULTS else digest_of(pack_whole(sorted(options.items())))
        if key not in self._remotes:
            try:
                self._remotes[key] = ray.remote(**options, num_returns=_RETURNS)(run)
            except (TypeError, ValueError) as exc:
                raise ValueError(
                    f"remote_options: Ray does not take {dict(options)}: {exc}"
                ) from exc
        return self._remotes[key]

    def _pickled(self, task: Task[Any, Any]) -> _PickledTask:
        # The task, its closure and its globals may be others at the next submit. Where it always
        # takes long to find out, we look again after a while.
        known = self._tasks.get(task)
        if known is not None and known.snapshot.holds(task):
            return known
        if (
            known is not None
            and time.monotonic() < known.good_until
            # What is in a closure, or in a callable object, may have changed.
            and getattr(task.fn, "__closure__", task) is None
            and known.snapshot.has_same_attributes(task)
        ):
            return known
        # Not by the clock: others may have the CPU meanwhile.
        snapshot, begun = TaskSnapshot(task), time.thread_time()
        try:
            packed, found = pack_whole(task), globals_of(task, pack_whole)
            packed_globals = pack_whole(found) if found else None
        except Exception as exc:
            raise Unpicklable(
                f"Task {task.name!r} cannot be sent to the cluster: {culprit(task, exc)}"
            ) from exc
        blob = self._blob(packed)
        globals_blob = None if packed_globals is None else self._blob(packed_globals)
        took = time.thread_time() - begun
        # Once may be an import or the garbage collector, which say nothing of the task.
        slow = min(took, known.took) if known is not None else 0.0
        good = time.monotonic() + slow * _TIMES_AS_LONG if slow > _QUICK_SECONDS else 0.0
        pickled = self._tasks[task] = _PickledTask(blob, globals_blob, took, good, snapshot)
        return pickled

    def _blob(self, packed: Packed) -> Blob:
        digest = digest_of(packed)
        blob = self._blobs.get(digest)
        if blob is None:
            blob = self._blobs[digest] = Blob.of(packed, digest)
        return blob
