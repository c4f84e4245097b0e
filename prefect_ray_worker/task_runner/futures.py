"""`RayTaskFuture`: the handle of a task run on the cluster."""

import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, PrefectTaskRunFuture
from prefect.logging import get_logger
from prefect.states import Crashed

from prefect_ray_worker.prefect_api.compat.flows import raise_if_suspended
from prefect_ray_worker.task_runner.pickling import unpack
from prefect_ray_worker.task_runner.plain import from_ray
from prefect_ray_worker.task_runner.results import RemoteResult, result_of
from prefect_ray_worker.task_runner.task_end import RemoteRecord, TaskEnd, is_infrastructure
from prefect_ray_worker.task_runner.waiting import OpenRefs, wait_yielding

R = TypeVar("R")

_log = get_logger("task_runner.ray")

# Only the process that has submitted the run has the references of its next try.
_MAY_RUN_AGAIN = (
    ". With infra_retries, the run may be run again, and this future does not learn of that: give "
    "the task the future itself as a parameter."
)


class RayTaskFuture(PrefectTaskRunFuture[R], Generic[R]):
    """The future of a task run on the cluster.

    Waiting for it brings word of its end here. Its state is put together when somebody looks at
    it, and its result stays in the cluster until `result()`, or the result of `state`, is asked
    for: a flow that maps over many items holds a future of each. Pickled, it becomes a future of
    the same run in the other process.

    Args:
        task_run_id: The run.
    """

    # One for all, and held for a moment only: a lock of its own would be a good part of a future.
    # A signal handler may cancel tasks in a thread that has it.
    _changing = threading.RLock()
    # Where a runner finds results that states have; only of a Ray that ends with the flow.
    kept_results: "weakref.WeakSet[RemoteResult] | None" = None

    def __init__(self, task_run_id: UUID) -> None:
        super().__init__(task_run_id)
        # Of Ray: the end until it is here, the result, None where Ray has lost it.
        self.end_ref: Any = None
        self.result_ref: Any = None
        self._end: TaskEnd | None = None
        self._is_done = False
        self._is_used = False
        self._waiters: list[Callable[[PrefectFuture[R]], None]] | None = None

    @property
    def is_in_ray(self) -> bool:
        """Whether other tasks can have its result from Ray, when it has ended at the latest."""
        return self.end_ref is not None or self._end is not None

    @property
    def end(self) -> TaskEnd | None:
        """What the task's process has said of its end, once it is here."""
        return self._end

    @property
    def is_done(self) -> bool:
        """Whether the final state is known here."""
        return self._is_done

    @property
    def state(self) -> State[Any]:
        """The run's state: the final one if it is known here, else what the API says."""
        end = self._end
        if self._final_state is None and end is not None:
            remote = RemoteResult(self._task_run_id, self.result_ref)
            self._final_state = remote.state_of(end)
            if self.kept_results is not None and end.kind == "record":
                self.kept_results.add(remote)
        return super().state

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the run; return also when `timeout`, in seconds, is over."""
        self._has_ended_within(timeout)
        raise_if_suspended()

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """Wait for the end of the run and return its result.

        Args:
            timeout: How long to wait, in seconds.
            raise_on_failure: Whether to raise its exception; otherwise it is returned.

        Raises:
            TimeoutError: The run has not ended in time.
            CrashedRun: Its process or its result was lost.
            Exception: Whatever the task has raised.
        """
        has_ended = self._has_ended_within(timeout)
        raise_if_suspended()
        if not has_ended:
            raise TimeoutError(
                f"Task run {self._task_run_id} did not complete within {timeout} seconds"
            )
        return result_of(self.state, raise_on_failure=raise_on_failure)

    def add_done_callback(self, fn: Callable[[PrefectFuture[R]], None]) -> None:
        """Call a function when the run has ended: at once, or in a thread of its own.

        In one of its own, because it may wait for other tasks, and the thread that learns of
        their ends must not wait.
        """
        if self._is_done:
            fn(self)
            return

        def call(_: object) -> None:
            threading.Thread(target=fn, args=(self,), name="ray-task-callback", daemon=True).start()

        self._add_prefect_done_callback(call)

    def _add_prefect_done_callback(self, fn: Callable[[PrefectFuture[R]], None]) -> None:
        # By this name, Prefect's `as_completed` and `wait` (3.8.8) ask futures for callbacks that
        # need no thread of their own.
        with self._changing:
            if not self._is_done:
                if self._waiters is None:
                    self._waiters = []
                self._waiters.append(fn)
                return
        fn(self)

    def resolve(self, end: "State[Any] | TaskEnd") -> None:
        """Resolve with the final state, or with what the task's process has said of it."""
        with self._changing:
            if self._is_done:
                return
            if isinstance(end, TaskEnd):
                # Before the reference goes: a future that is submitted with has one or the other.
                self._end = end
                self.end_ref = None
            else:
                self._final_state = end
            self._is_done = True
            waiters, self._waiters = self._waiters or (), None
        for tell in waiters:
            try:
                tell(self)
            except Exception:  # one of those who wait must not keep it from the others
                _log.exception("A callback of task run %s has failed", self._task_run_id)

    def set_refs(self, end_ref: Any, result_ref: Any) -> None:
        """Set the references of a try, and look at the errors of an earlier one."""
        before = self.end_ref, self.result_ref
        self.end_ref, self.result_ref = end_ref, result_ref
        _look_at_errors(before)

    def forget_refs(self) -> None:
        """Forget what Ray had of a run whose end has not come: it will not any more."""
        if self._end is not None:
            return
        before = self.end_ref, self.result_ref
        self.end_ref = self.result_ref = None
        _look_at_errors(before)

    def fetch_if_used(self) -> None:
        """Fetch the result if the flow has waited for it."""
        if self._is_used and self._is_done:
            data: Any = self.state.data
            if isinstance(data, RemoteRecord):
                _ = data.result

    def _has_ended_within(self, seconds: float | None) -> bool:
        self._is_used = True
        if self._is_done:
            return True
        ended = threading.Event()

        def tell(_: object) -> None:
            ended.set()

        self._add_prefect_done_callback(tell)
        if not wait_yielding(ended.wait, seconds):
            with self._changing:
                self._waiters = [waiter for waiter in self._waiters or () if waiter is not tell]
        return self._is_done

    def __hash__(self) -> int:
        return hash(self._task_run_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RayTaskFuture) and other.task_run_id == self.task_run_id

    def __reduce__(self) -> tuple[Any, ...]:
        end_ref, end = self.end_ref, self._end
        if end is not None:
            return _done_in_other_process, (self._task_run_id, end, self.result_ref)
        if end_ref is not None:
            return _in_other_process, (self._task_run_id, end_ref, self.result_ref)
        if self._is_done:
            return DoneFuture, (self._task_run_id, self.state)
        raise TypeError(
            f"The future of task run {self._task_run_id} waits for its turn to be submitted to "
            "Ray, and cannot be pickled before that; wait for it first."
        )


def _in_other_process(task_run_id: UUID, end_ref: Any, result_ref: Any) -> RayTaskFuture[Any]:
    future: RayTaskFuture[Any] = RayTaskFuture(task_run_id)
    future.end_ref, future.result_ref = end_ref, result_ref
    OpenRefs.add(end_ref)

    def arrived(done: "concurrent.futures.Future[Any]") -> None:
        OpenRefs.discard(end_ref)
        try:
            future.resolve(from_ray(done.result()))
        except BaseException as exc:  # it has to reach whoever waits
            message = f"Its end did not arrive ({type(exc).__name__}: {exc})"
            if is_infrastructure(exc):
                message += _MAY_RUN_AGAIN
            state: State[Any] = Crashed(message=message, data=exc)
            state.state_details.task_run_id = task_run_id
            future.resolve(state)
            future.forget_refs()

    end_ref.future().add_done_callback(arrived)
    return future


def _done_in_other_process(task_run_id: UUID, end: TaskEnd, result_ref: Any) -> RayTaskFuture[Any]:
    future: RayTaskFuture[Any] = RayTaskFuture(task_run_id)
    future.result_ref = result_ref
    future.resolve(end)
    return future


class DoneFuture(PrefectTaskRunFuture[R], Generic[R]):
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
        assert self._final_state is not None
        return result_of(self._final_state, raise_on_failure=raise_on_failure)

    def add_done_callback(self, fn: Any) -> None:
        """Call the function at once."""
        fn(self)

    def __hash__(self) -> int:
        return hash(self._task_run_id)

    def __reduce__(self) -> tuple[Any, ...]:
        assert self._final_state is not None
        return _remake, (self._task_run_id, *TaskEnd.of(self._final_state))


def _remake(task_run_id: UUID, end: TaskEnd, packed: Any) -> DoneFuture[Any]:
    return DoneFuture(task_run_id, end.restore(lambda: unpack(packed)))


def _look_at_errors(refs: Iterable[Any]) -> None:
    """Look at errors: Ray (2.60) logs one that nobody has looked at once more, as unhandled."""
    import ray

    given = [ref for ref in refs if ref is not None]
    if given and ray.is_initialized():  # a call would start another one
        with contextlib.suppress(Exception):
            ray.get(given, timeout=0)


def when_done(futures: Iterable[PrefectFuture[Any]], then: Callable[[], None]) -> None:
    """Call a function when all of these are done."""
    left = list(futures)
    lock = threading.Lock()
    count = len(left)

    def one_done(_: object) -> None:
        nonlocal count
        with lock:
            count -= 1
            last = count == 0
        if last:
            then()

    for future in left:
        add: Any = getattr(future, "_add_prefect_done_callback", future.add_done_callback)
        add(one_done)
