"""`RayTaskFuture`: the handle of a task run on the cluster."""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.exceptions import CrashedRun
from prefect.futures import PrefectConcurrentFuture, PrefectFuture, PrefectTaskRunFuture
from prefect.states import Crashed
from prefect.utilities.engine import link_state_to_task_run_result

from prefect_ray_worker.task_runner.outcomes import Outcome, RemoteRecord
from prefect_ray_worker.task_runner.parcels import unpack
from prefect_ray_worker.task_runner.reasons import describe

R = TypeVar("R")


class RayTaskFuture(PrefectConcurrentFuture[R], Generic[R]):
    """The future of a task run on the cluster.

    Waiting for it brings its state here; its result stays in the cluster until `result()`, or
    the result of `state`, is asked for. Pickled, it becomes a future of the same run in the other
    process.

    Args:
        task_run_id: The run.
        wrapped_future: Resolves with the final state.
    """

    def __init__(
        self, task_run_id: UUID, wrapped_future: "concurrent.futures.Future[Any] | None" = None
    ) -> None:
        self._ending: concurrent.futures.Future[Any] = wrapped_future or concurrent.futures.Future()
        super().__init__(task_run_id, self._ending)
        # Of Ray: the outcome, the result and the mail. None before Ray has the task, and when it
        # has lost it.
        self.outcome_ref: Any = None
        self.result_ref: Any = None

    @property
    def is_in_ray(self) -> bool:
        """Whether Ray can make other tasks wait for this one."""
        return self.outcome_ref is not None

    @property
    def is_done(self) -> bool:
        """Whether the final state is known here."""
        return self._ending.done()

    @property
    def state(self) -> State[Any]:
        """The run's state: the final one if it is known here, else what the API says."""
        if self._final_state is None and self._ending.done():
            self._final_state = self._ending.result()
        return super().state

    def load(self) -> Any:
        """Fetch the result from the cluster.

        Raises:
            CrashedRun: It was lost, with its node for example.
        """
        import ray
        from ray.exceptions import RayError

        try:
            parcel: Any = ray.get(self.result_ref)
        except RayError as exc:
            raise CrashedRun(
                f"Task run {self._task_run_id} has completed, but its result cannot be had: "
                f"{describe(exc)}"
            ) from exc
        result = unpack(parcel)
        # Where the result is passed on, Prefect draws this run as the upstream one.
        link_state_to_task_run_result(self._ending.result(), result)
        return result

    def add_done_callback(self, fn: Callable[[PrefectFuture[R]], None]) -> None:
        """Call a function when the run has ended: at once, or in a thread of its own.

        In one of its own, because it may wait for other tasks, and the thread that learns of
        their ends must not wait.
        """
        if self.is_done:
            fn(self)
            return

        def call(_: object) -> None:
            threading.Thread(target=fn, args=(self,), name="ray-task-callback", daemon=True).start()

        self._ending.add_done_callback(call)

    def land(self, state: State[Any]) -> None:
        """Resolve with the final state."""
        if not self._ending.done():
            self._ending.set_result(state)

    def lose(self) -> None:
        """Forget what Ray had of the run: it will not come any more."""
        self.outcome_ref = self.result_ref = None

    def fetch_if_used(self) -> None:
        """Fetch the result if somebody has the state and could still ask for it."""
        if self._final_state is not None and isinstance(self._final_state.data, RemoteRecord):
            _ = self._final_state.data.result

    def __hash__(self) -> int:
        return hash(self._task_run_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RayTaskFuture) and other.task_run_id == self.task_run_id

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_in_ray:
            return _in_other_process, (self._task_run_id, self.outcome_ref, self.result_ref)
        if self.is_done:
            return ArrivedFuture, (self._task_run_id, self.state)
        raise TypeError(
            f"The future of task run {self._task_run_id} waits for its turn to be submitted to "
            "Ray, and cannot be pickled before that; wait for it first."
        )


def _in_other_process(task_run_id: UUID, outcome_ref: Any, result_ref: Any) -> RayTaskFuture[Any]:
    future: RayTaskFuture[Any] = RayTaskFuture(task_run_id)
    future.outcome_ref, future.result_ref = outcome_ref, result_ref

    def arrived(done: "concurrent.futures.Future[Outcome]") -> None:
        try:
            future.land(done.result().restore(future.load))
        except BaseException as exc:  # it has to reach whoever waits
            message = f"Its outcome did not arrive ({type(exc).__name__}: {exc})"
            state: State[Any] = Crashed(message=message, data=exc)
            state.state_details.task_run_id = task_run_id
            future.land(state)
            future.lose()

    outcome_ref.future().add_done_callback(arrived)
    return future


class ArrivedFuture(PrefectTaskRunFuture[R], Generic[R]):
    """An upstream run as a task's process sees it: done.

    Args:
        task_run_id: The run.
        state: Its final state.
    """

    def __init__(self, task_run_id: UUID, state: State[Any]) -> None:
        super().__init__(task_run_id)
        self._final_state = state

    def wait(self, timeout: float | None = None) -> None:
        """Return at once."""

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """Return the run's result, or raise its exception."""
        state: Any = self._final_state
        return state.result(raise_on_failure=raise_on_failure, _sync=True)

    def add_done_callback(self, fn: Any) -> None:
        """Call the function at once."""
        fn(self)

    def __hash__(self) -> int:
        return hash(self._task_run_id)

    def __reduce__(self) -> tuple[Any, ...]:
        assert self._final_state is not None
        return _rearrive, (self._task_run_id, *Outcome.of(self._final_state))


def _rearrive(task_run_id: UUID, outcome: Outcome, parcel: Any) -> ArrivedFuture[Any]:
    return ArrivedFuture(task_run_id, outcome.restore(lambda: unpack(parcel)))
