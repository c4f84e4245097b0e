"""`Caller`: turns submits into calls of Ray's."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFlowRunFuture
from prefect.tasks import Task

from prefect_ray_worker.errors import Unpicklable
from prefect_ray_worker.task_runner.futures import ArrivedFuture, RayTaskFuture
from prefect_ray_worker.task_runner.inputs import Inputs
from prefect_ray_worker.task_runner.options import DEFAULTS, options_for, to_inherit
from prefect_ray_worker.task_runner.parcels import Blob, Parcel, dumps, pack
from prefect_ray_worker.task_runner.surroundings import Surroundings
from prefect_ray_worker.task_runner.unpicklable import culprit

_RETURNS = 3


@dataclass(eq=False)
class Flight:
    """A task run between its submit and its landing.

    Attributes:
        task: The task.
        future: What the user holds.
        inputs: Its parameters and upstream runs.
        remote: The function of Ray's with the run's options.
        name: What Ray calls it, in its dashboard and timeline.
        surroundings: Of its flow run.
        blob: The pickled task.
        parameters: Parcel of the parameters.
        wait_for: Parcel of what it waits for.
        circumstances: What is particular to this submit.
        inherited: Options of Ray for nested submits.
        tags: Of the run, for a state that we report ourselves.
        flow_run_id: Likewise.
        mail_ref: Of Ray: the outcome and the mail; None before Ray has the task.
        infra_retries: How often it may be run again after its process has died.
        given: The upstream runs that Ray was told to wait for.
    """

    task: Task[Any, Any]
    future: RayTaskFuture[Any]
    inputs: Inputs
    remote: Any
    name: str
    surroundings: Blob
    blob: Blob
    parameters: Parcel
    wait_for: Parcel | None
    circumstances: bytes
    inherited: dict[str, Any]
    tags: set[str]
    flow_run_id: UUID | None
    mail_ref: Any = None
    infra_retries: int = 0
    given: list[RayTaskFuture[Any]] = field(default_factory=list[RayTaskFuture[Any]])

    @property
    def has_lost_upstream(self) -> bool:
        """Whether an upstream run, which Ray was to wait for, will never come from Ray."""
        return any(not source.is_in_ray for source in self.given)

    def launch(self) -> None:
        """Give the task to Ray; every upstream run has to be there, or done.

        Raises:
            ValueError: For options that Ray does not take.
        """
        from prefect_ray_worker.task_runner.execution import Call

        arguments: list[Any] = []
        self.given = []
        slots = [self._slot(i, source, arguments) for i, source in enumerate(self.inputs.sources)]
        call = Call(
            task_run_id=self.future.task_run_id,
            parameters=self.parameters,
            wait_for=self.wait_for,
            slots=slots,
            dependencies=self.inputs.dependencies,
            context=self.circumstances,
            inherited=self.inherited,
        )
        remote = self.remote.options(name=self.name)
        try:
            outcome, result, self.mail_ref = remote.remote(
                self.surroundings, self.blob, call, *arguments
            )
        except (TypeError, ValueError) as exc:  # some options are looked at only now
            raise ValueError(f"remote_options of {self.name!r}: {exc}") from exc
        self.future.outcome_ref, self.future.result_ref = outcome, result

    def _slot(self, index: int, source: Any, arguments: list[Any]) -> Any:
        if not hasattr(source, "task_run_id") and not isinstance(source, State):
            arguments.append(source)
            return "reference", len(arguments) - 1
        if isinstance(source, RayTaskFuture) and source.is_in_ray:
            self.given.append(source)
            arguments.append(source.outcome_ref)
            outcome, result = len(arguments) - 1, None
            if index in self.inputs.with_result:
                arguments.append(source.result_ref)
                result = len(arguments) - 1
            return "run", source.task_run_id, outcome, result
        if isinstance(source, State):
            return "parcel", pack(source)
        source.wait()  # it is done: without this, Prefect's own futures ask the API for their state
        if isinstance(source, PrefectFlowRunFuture):
            return "parcel", pack(source.state)
        return "parcel", pack(ArrivedFuture(source.task_run_id, source.state))


class Caller:
    """Prepares submits of one started runner.

    Args:
        surroundings: Pickles what is around the submits.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._remotes: dict[bytes, Any] = {}
        self._tasks: weakref.WeakKeyDictionary[Any, Blob] = weakref.WeakKeyDictionary()

    def prepare(self, task: Task[Any, Any], future: RayTaskFuture[Any], inputs: Inputs) -> Flight:
        """Pickle what a task run needs.

        Raises:
            Unpicklable: For a task or a parameter that cannot be pickled; names the culprit.
            ValueError: For options that Ray does not take.
        """
        from prefect.context import FlowRunContext, TagsContext

        flow_run = FlowRunContext.get()
        return Flight(
            task=task,
            future=future,
            inputs=inputs,
            remote=self.remote(options_for(task)),
            name=f"{task.name} {future.task_run_id}",
            surroundings=self._surroundings.here(),
            blob=self._pickled(task),
            parameters=_packed(task, inputs.parameters),
            wait_for=pack(inputs.wait_for) if inputs.wait_for is not None else None,
            circumstances=self._surroundings.circumstances(
                task, future.task_run_id, inputs.upstream
            ),
            inherited=to_inherit(),
            tags={*task.tags, *(TagsContext.get().current_tags)},
            flow_run_id=flow_run.flow_run.id if flow_run and flow_run.flow_run else None,
        )

    def remote(self, options: Mapping[str, Any]) -> Any:
        """Return the function of Ray's with these options, always the same one.

        A new function for each submit would be exported for each, and could reuse no lease.
        """
        import ray

        from prefect_ray_worker.task_runner.execution import run

        key = b"" if options == DEFAULTS else dumps(sorted(options.items()))
        if key not in self._remotes:
            try:
                self._remotes[key] = ray.remote(**options, num_returns=_RETURNS)(run)
            except (TypeError, ValueError) as exc:
                raise ValueError(
                    f"remote_options: Ray does not take {dict(options)}: {exc}"
                ) from exc
        return self._remotes[key]

    def _pickled(self, task: Task[Any, Any]) -> Blob:
        # A closure's variables may be others the next time; globals are taken as they are at the
        # first submit, as Ray does with its remote functions.
        has_closure = bool(getattr(task.fn, "__closure__", None))
        blob = None if has_closure else self._tasks.get(task)
        if blob is None:
            try:
                blob = Blob.of(dumps(task))
            except Exception as exc:
                raise Unpicklable(
                    f"Task {task.name!r} cannot be sent to the cluster: {culprit(task, exc)}"
                ) from exc
            self._tasks[task] = blob
        return blob


def _packed(task: Task[Any, Any], parameters: dict[str, Any]) -> Parcel:
    try:
        return pack(parameters)
    except Exception as exc:
        for name, value in parameters.items():
            try:
                pack(value)
            except Exception as why:
                raise Unpicklable(
                    f"Parameter {name!r} of task {task.name!r}, a {type(value).__qualname__}, "
                    f"cannot be sent to the cluster: {type(why).__name__}: {why}"
                ) from exc
        raise
