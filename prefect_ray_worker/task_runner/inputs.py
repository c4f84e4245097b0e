"""What a task gets from elsewhere: upstream runs become Ray dependencies, before Ray sees the task.

Ray does not start a task before its dependencies are there, so a task that waits for others holds
no process and no GPU. Each upstream run is one slot; where a parameter held the future, there is
now a placeholder that becomes the arrived run when the task's process unpickles the parameters.
"""

import copyreg
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, cast

from prefect.client.schemas.objects import FlowRun, RunInput, State, TaskRun, TaskRunResult
from prefect.context import FlowRunContext
from prefect.futures import PrefectFlowRunFuture, PrefectFuture
from prefect.utilities.annotations import (
    BaseAnnotation,
    allow_failure,
    opaque,
    quote,
    unmapped,
)
from prefect.utilities.collections import StopVisiting, visit_collection
from prefect.utilities.engine import get_state_for_result

from prefect_ray_worker.task_runner.futures import DoneFuture, RayTaskFuture
from prefect_ray_worker.task_runner.task_end import without_result

Dependencies = dict[str, set[RunInput]]
Source = Any
"""A future, or an object reference of Ray that the user has passed."""


def _annotate(annotation: BaseAnnotation[Any]) -> tuple[Any, ...]:
    return type(annotation), (annotation.unwrap(),)


# By themselves they come out of a pickle with their value wrapped once more (3.8.8).
for _kind in (allow_failure, opaque, quote, unmapped):
    copyreg.pickle(_kind, _annotate)

_slot_values: ContextVar[list[Any]] = ContextVar("values")

_ATOMS = {int, float, str, bytes, bool, type(None)}


class Placeholder:
    """Stands in pickled parameters for what comes through a slot."""

    __slots__ = ("slot",)

    def __init__(self, slot: int) -> None:
        self.slot = slot

    def __reduce__(self) -> tuple[Any, ...]:
        return _take, (self.slot,)


def _take(slot: int) -> Any:
    return _slot_values.get()[slot]


def fill_slots(values: list[Any]) -> None:
    """Let placeholders that are unpickled in this context become these."""
    _slot_values.set(values)


class Inputs:
    """The parameters and dependencies of one submit.

    Attributes:
        parameters: With placeholders.
        wait_for: Placeholders and states, without what else there was to wait for.
        dependencies: What Prefect draws as the run's upstream runs, for each parameter.
        upstream: The same with those of `wait_for`.
        sources: What comes through the slots.
        with_result: The slots whose result is wanted, and not only that they are done.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        wait_for: Iterable[Any] | None,
        dependencies: Mapping[str, Iterable[RunInput]] | None,
    ) -> None:
        from ray import ObjectRef

        self._ref_type = ObjectRef
        self.sources: list[Source] = []
        self.with_result: set[int] = set()
        self._slots: dict[int, int] = {}
        flow_run = FlowRunContext.get()
        self._has_results = flow_run is not None and bool(flow_run.run_results)
        self.dependencies: Dependencies = {}
        self.parameters = {k: self._exchange(k, v) for k, v in parameters.items()}
        for name, inputs in (dependencies or {}).items():
            if name in self.parameters:
                self.dependencies.setdefault(name, set()).update(inputs)
        self.wait_for = (self._waits(_listed(wait_for)) or None) if wait_for else None
        self.upstream = dict(self.dependencies)
        # The engine collects these by itself, and knows no other way to add to them.
        self.dependencies.pop("wait_for", None)

    def _exchange(self, name: str, value: Any) -> Any:
        def visit(expr: Any, context: dict[str, Any]) -> Any:
            if type(expr) in _ATOMS and not self._has_results:
                return expr  # at once: most parameters of small tasks are such
            if isinstance(context.get("annotation"), quote):
                raise StopVisiting
            placeholder = self._noted(name, expr, result=True)
            return expr if placeholder is None else placeholder

        return visit_collection(value, visit, return_data=True, context={})

    def _waits(self, wait_for: Any) -> list[Any]:
        """Return what the engine asks for of all there is to wait for: how the runs have ended.

        Plain values and results stay here: they may be large, or not picklable.
        """
        found: list[Any] = []

        def visit(expr: Any, context: dict[str, Any]) -> None:
            annotation: BaseAnnotation[Any] | None = context.get("annotation")
            if isinstance(annotation, quote):
                raise StopVisiting
            kept: Any = self._noted("wait_for", expr, result=False)
            is_source = kept is not None
            if isinstance(expr, State):
                kept = without_result(expr)
            elif isinstance(expr, (FlowRun, TaskRun)):
                kept = expr  # which the engine refuses, as it does with threads
            if kept is not None:
                found.append(kept if annotation is None else annotation.rewrap(kept))
            if is_source:
                raise StopVisiting

        visit_collection(wait_for, visit, context={})
        return found

    def _noted(self, name: str, expr: Any, *, result: bool) -> "Placeholder | None":
        """Note what an expression depends on; return what stands for it if it has a slot."""
        if isinstance(expr, PrefectFuture):
            if not isinstance(expr, PrefectFlowRunFuture):
                self._depends(name, TaskRunResult(id=expr.task_run_id))
            return self._placeholder(expr, result=result)
        if isinstance(expr, self._ref_type):
            return self._placeholder(expr, result=True)
        if isinstance(expr, State):
            if expr.state_details.task_run_id:
                self._depends(name, TaskRunResult(id=expr.state_details.task_run_id))
        elif self._has_results:
            self._look_up(name, expr)
        return None

    def _look_up(self, name: str, value: Any) -> None:
        found = get_state_for_result(value)
        if found is not None:
            state, run_type = found
            run = state.state_details.to_run_result(run_type)
            if run is not None:
                self._depends(name, run)

    def _depends(self, name: str, run: RunInput) -> None:
        self.dependencies.setdefault(name, set()).add(run)

    def _placeholder(self, source: Source, *, result: bool) -> Placeholder:
        slot = self._slots.setdefault(id(source), len(self.sources))
        if slot == len(self.sources):
            self.sources.append(source)
        if result:
            self.with_result.add(slot)
        return Placeholder(slot)


def _listed(wait_for: Any) -> Any:
    if isinstance(wait_for, (PrefectFuture, State, BaseAnnotation)):
        return cast("Any", wait_for)
    return list(wait_for)


def foreign_among(sources: Iterable[Source]) -> list[PrefectFuture[Any]]:
    """Return the futures that Ray knows nothing of: somebody else has to wait for them."""
    return [
        source
        for source in sources
        if isinstance(source, PrefectFuture)
        and not (isinstance(source, RayTaskFuture) and source.is_in_ray)
        and not isinstance(source, DoneFuture)
    ]
