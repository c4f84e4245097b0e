"""`RemoteResult`: the result of a task run, in the cluster until somebody asks for it."""

import weakref
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.exceptions import CrashedRun
from prefect.results import ResultRecord  # pyright: ignore[reportPrivateImportUsage]
from prefect.utilities.engine import link_state_to_task_run_result

from prefect_ray_worker.task_runner.plain import result_from_ray
from prefect_ray_worker.task_runner.task_end import TaskEnd, describe
from prefect_ray_worker.task_runner.waiting import alarms_after


class RemoteResult:
    """Fetches the result of a run once.

    Its run's state refers to it, and it refers to no future: a state and a future that nobody has
    any more go at once, and the result with them.

    Args:
        task_run_id: The run.
        ref: The reference to its packed result.
    """

    def __init__(self, task_run_id: UUID, ref: Any) -> None:
        self._task_run_id = task_run_id
        self._ref: Any = ref
        self._loaded: tuple[Any] | None = None
        self._state: weakref.ref[State[Any]] | None = None

    def state_of(self, end: TaskEnd) -> State[Any]:
        """Put the run's state together; its result is this one."""
        state = end.restore(self.load)
        self._state = weakref.ref(state)
        return state

    def load(self) -> Any:
        """Return the result, from the cluster the first time.

        Raises:
            CrashedRun: It was lost, with its node for example.
        """
        if self._loaded is not None:
            return self._loaded[0]
        result = self._fetched()
        self._loaded, self._ref = (result,), None
        state = self._state() if self._state is not None else None
        if state is not None:
            # Where the result is passed on, Prefect draws this run as the upstream one.
            link_state_to_task_run_result(state, result)
        return result

    def _fetched(self) -> Any:
        import ray
        from ray.exceptions import RayError

        if not ray.is_initialized():  # Ray would start another one, and ask that
            raise CrashedRun(
                f"The result of task run {self._task_run_id} is gone: Ray was shut down"
            )
        ref = self._ref
        if self._loaded is not None:  # by another thread, just now
            return self._loaded[0]
        try:
            with alarms_after():
                packed: Any = ray.get(ref)
        except RayError as exc:
            raise CrashedRun(
                f"Task run {self._task_run_id} has completed, but its result cannot be had: "
                f"{describe(exc)}"
            ) from exc
        return result_from_ray(packed)


def result_of(state: State[Any], *, raise_on_failure: bool) -> Any:
    """Return the result of a final state, or raise or return its exception.

    Prefect's own `State.result` (3.8.8) goes through the event loop of another thread, which costs
    as much as a submit, and has a result from the cluster fetched in that loop.
    """
    data: Any = state.data
    if state.is_completed() and isinstance(data, ResultRecord):
        return data.result
    any_state: Any = state
    return any_state.result(raise_on_failure=raise_on_failure, _sync=True)
