"""`RayTaskRunner`: runs the tasks of a flow on a Ray cluster."""

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar

from prefect.client.schemas.objects import FlowRun, RunInput, State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.logging import get_logger
from prefect.results import ResultRecord  # pyright: ignore[reportPrivateImportUsage]
from prefect.task_runners import TaskRunner
from prefect.tasks import Task

from prefect_ray_worker.errors import RayShutDown, TransactionAround
from prefect_ray_worker.prefect_api.compat.events import await_events_sent
from prefect_ray_worker.prefect_api.compat.tasks import new_run_id
from prefect_ray_worker.prefect_api.compat.transactions import (
    is_in_transaction_of_user,
    note_transactions_of_engines,
)
from prefect_ray_worker.task_runner import code, modules, session
from prefect_ray_worker.task_runner.context import ContextPickler
from prefect_ray_worker.task_runner.dispatcher import Dispatcher
from prefect_ray_worker.task_runner.feasibility import Feasibility
from prefect_ray_worker.task_runner.futures import RayTaskFuture
from prefect_ray_worker.task_runner.inputs import Inputs
from prefect_ray_worker.task_runner.parameters import unchanged_parameters
from prefect_ray_worker.task_runner.pending import TaskPreparer
from prefect_ray_worker.task_runner.process import TaskProcess
from prefect_ray_worker.task_runner.results import RemoteResult
from prefect_ray_worker.task_runner.telemetry import telemetry
from prefect_ray_worker.task_runner.waiting import OpenRefs

T = TypeVar("T", bound="RayTaskRunner")

_FEWEST_IN_FLIGHT = 1_000
_IN_FLIGHT_PER_CPU = 4
# Enough for an API that asks for a minute's pause, as the driver waits for Prefect's own logs.
_FLUSH_SECONDS = 120.0
_FLUSH_SECONDS_INTERRUPTED = 30.0
_EVENTS_SECONDS = 5.0


class RayTaskRunner(TaskRunner[RayTaskFuture[Any]]):
    """Runs tasks on a Ray cluster; takes the place of `prefect_ray.RayTaskRunner`.

    In a Ray Job, a work pool of type `ray` makes one of each flow run, it joins the job's
    cluster. Elsewhere it starts a Ray on this machine for as long as the flow runs, or joins the
    one at `address`. A Ray that is initialized already is used, and left as it is.

    Args:
        address: Of a running cluster, as `ray.init` takes it. `auto` joins one that this machine
            is a node of, and nothing else.
        init_kwargs: More arguments for `ray.init`. `namespace` is `prefect` by default.
        ship_code: Whether a cluster that is joined gets the flow's folder. See
            `docs/how-to/fan-out.md`.
        infra_retries: How often a task is run again whose process or node has died. Its own
            `retries` are for its own failures. A future that another task got inside an object
            belongs to one try, and is Crashed there if that one dies.
        max_in_flight: How many tasks Ray is given at a time; further ones wait in the driver. By
            default 1,000, or four for each CPU of the cluster if that is more.

    Example:
        ```python
        @flow(task_runner=RayTaskRunner())
        def my_flow():
            return [f.result() for f in my_task.map(range(1000))]
        ```
    """

    def __init__(
        self,
        address: str | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        *,
        ship_code: bool = True,
        infra_retries: int = 0,
        max_in_flight: int | None = None,
    ) -> None:
        for name, value, least in (
            ("infra_retries", infra_retries, 0),
            ("max_in_flight", max_in_flight, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"RayTaskRunner({name}={value}): must be at least {least}.")
        self.address = address
        self.init_kwargs: dict[str, Any] = {"namespace": "prefect", **(init_kwargs or {})}
        self.ship_code = ship_code
        self.infra_retries = infra_retries
        self.max_in_flight = max_in_flight
        self._session: session.RaySession | None = None
        self._preparer: TaskPreparer | None = None
        self._dispatcher: Dispatcher | None = None
        self._feasibility: Feasibility | None = None
        self._flow_run: FlowRun | None = None
        # Whether Prefect's engine has started it for one attempt of the flow.
        self._is_of_attempt = False
        # Several threads of a flow may submit at once.
        self._starting = threading.Lock()
        # Only of a Ray that ends with the flow.
        self._futures: weakref.WeakSet[RayTaskFuture[Any]] = weakref.WeakSet()
        self._results: weakref.WeakSet[RemoteResult] = weakref.WeakSet()
        # Prefect starts a duplicate and cancels the original: they share what there is to cancel.
        self._dispatchers: set[Dispatcher] = set()
        # Before any task begins whose transaction may be open around a submit.
        note_transactions_of_engines()
        super().__init__()

    def duplicate(self) -> Self:
        """Return a runner with the same settings, which is not started."""
        other = _runner(type(self), self._settings())
        other._dispatchers = self._dispatchers  # noqa: SLF001 (another of us)
        return other

    def without_secrets(self) -> Self:
        """Return a runner for nested submits: it finds a Ray, and needs nothing to connect."""
        return _runner(type(self), {**self._settings(), "init_kwargs": None})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RayTaskRunner) and self._settings() == other._settings()

    __hash__: ClassVar[None]  # pyright: ignore[reportIncompatibleMethodOverride]

    def __reduce__(self) -> tuple[Any, ...]:
        return _runner, (type(self), self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "init_kwargs": self.init_kwargs,
            "ship_code": self.ship_code,
            "infra_retries": self.infra_retries,
            "max_in_flight": self.max_in_flight,
        }

    def submit(  # pyright: ignore[reportIncompatibleMethodOverride] (its overloads say the same)
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> RayTaskFuture[Any]:
        """Submit a task to the cluster and return without waiting for anything.

        Args:
            task: The task.
            parameters: Its parameters; futures in them become its upstream runs.
            wait_for: More upstream runs.
            dependencies: More to draw as upstream runs.

        Raises:
            RuntimeError: The runner is not started.
            RayShutDown: Ray was shut down since the runner has started.
            Unpicklable: The task or a parameter cannot be sent; the message names the culprit.
            TransactionAround: A transaction is open, and could not undo the task.
            ValueError: `remote_options` that Ray does not take.
        """
        if not self._started:
            raise RuntimeError("The task runner must be started before submitting work.")
        _refuse_transaction(task)
        if not session.is_connected():
            raise RayShutDown("Ray was shut down after the task runner had started; submit before.")
        preparer, dispatcher = self._ready()
        code.travels_if_it_must(task.fn)
        future: RayTaskFuture[Any] = RayTaskFuture(new_run_id())
        inputs = Inputs(parameters, wait_for, dependencies)
        pending = preparer.prepare(task, future, inputs)
        pending.infra_retries = self.infra_retries
        if self._feasibility is not None:
            self._feasibility.check(task)
        dispatcher.launch(pending)
        if self._session is not None and self._session.is_ours:
            future.kept_results = self._results
            self._futures.add(future)
        return future

    def map(  # pyright: ignore[reportIncompatibleMethodOverride] (its overloads say the same)
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
    ) -> PrefectFutureList[RayTaskFuture[Any]]:
        """Submit a task for each item of its parameters; an `unmapped` one is pickled once.

        Args:
            task: The task.
            parameters: Its parameters; those that are no iterables go to each submit.
            wait_for: More upstream runs.
        """
        with unchanged_parameters():
            return super().map(task, parameters, wait_for)

    def cancel_all(self) -> None:
        """Cancel every task of this runner and of its duplicates: gently, then by force."""
        for dispatcher in list(self._dispatchers):
            dispatcher.cancel()

    def __enter__(self) -> Self:
        super().__enter__()
        # In a process of the cluster each task comes by here: nothing is done before a submit.
        if not session.is_task_process():
            try:
                self._session = session.connect(
                    self.address, self.init_kwargs, ship_code=self.ship_code
                )
            except BaseException:
                self._started = False
                raise
            if self._session.is_ours:
                warm_up()
        else:
            # Also in a function or an actor of a user's, where no task of ours was before.
            OpenRefs.in_task_process()
        return self

    def __exit__(self, *exc_info: object) -> None:
        exc = exc_info[1]
        seconds = _seconds_to_flush(exc, self._flow_run.state if self._flow_run else None)
        has_failed, is_interrupted = self._has_failed(), True
        try:
            self._end(cancel=exc is not None or has_failed, flush_seconds=seconds)
            is_interrupted = exc is not None
        finally:
            try:
                if not is_interrupted:
                    self._fetch_results(has_failed=has_failed)
            finally:
                self._leave()
                super().__exit__(*exc_info)

    def _ready(self) -> tuple[TaskPreparer, Dispatcher]:
        with self._starting:
            return self._made_ready()

    def _made_ready(self) -> tuple[TaskPreparer, Dispatcher]:
        if self._preparer is None or self._dispatcher is None:
            context = FlowRunContext.get()
            self._flow_run = context.flow_run if context else None
            # A context that has travelled is that of a nested submit.
            self._is_of_attempt = (
                context is not None and context.task_runner is self and not context.detached
            )
            paths, own = [], modules.OwnModules()
            if self._session is not None:
                paths, own = self._session.paths, self._session.own
                modules.use(self._session.own_here)
            if context is not None and context.flow is not None:
                code.travels_if_it_must(context.flow.fn)
            self._preparer = TaskPreparer(ContextPickler(paths, own))
            self._dispatcher = Dispatcher(self._limit(), telemetry())
            self._dispatchers.add(self._dispatcher)
            self._feasibility = Feasibility()
        return self._preparer, self._dispatcher

    def _limit(self) -> int:
        if self.max_in_flight is not None:
            return self.max_in_flight
        import ray

        cpus = ray.cluster_resources().get("CPU", 0)
        return max(_FEWEST_IN_FLIGHT, int(_IN_FLIGHT_PER_CPU * cpus))

    def _has_failed(self) -> bool:
        # The engine has dealt with the flow's exception before we get here.
        state = self._flow_run.state if self._flow_run else None
        if state is None:
            return False
        if state.is_running():
            # With `retries`, the engine (3.8.8) sets Running again before it leaves the attempt.
            return self._is_of_attempt
        # A flow that was suspended gets what its tasks have done when it goes on.
        return not (state.is_paused() or state.is_completed())

    def _end(self, *, cancel: bool, flush_seconds: float) -> None:
        dispatcher = self._dispatcher
        if dispatcher is None:
            return
        try:
            if cancel:
                dispatcher.cancel(is_urgent=_is_urgent(flush_seconds))
            else:
                dispatcher.finish()
        except BaseException as exc:
            flush_seconds = min(flush_seconds, _seconds_to_flush(exc, None))
            dispatcher.cancel(is_urgent=_is_urgent(flush_seconds))
            raise
        finally:
            dispatcher.stop()
            self._dispatchers.discard(dispatcher)
            # What comes while a task of ours runs comes back with it.
            if not TaskProcess.is_in_task():
                _flush(flush_seconds)
                if dispatcher.has_reported:
                    await_events_sent(_EVENTS_SECONDS)

    def _leave(self) -> None:
        ours = self._session
        self._preparer = self._dispatcher = self._feasibility = self._session = None
        if ours is not None and ours.is_ours:
            ours.leave()

    def _fetch_results(self, *, has_failed: bool) -> None:
        """Fetch what can still be asked for after a Ray that ends with the flow.

        That is what states have that are left, and what futures have that the flow has waited for.
        A flow that fails hands on no future. One that has raised an exception hands on no state
        either, but the exception's frames still have them all.
        """
        fetches: list[Callable[[], Any]] = []
        if not has_failed:
            fetches += [future.fetch_if_used for future in list(self._futures)]
        if not has_failed or not self._has_raised():
            fetches += [result.load for result in list(self._results)]
        for fetch in fetches:
            try:
                fetch()
            except Exception:  # a lost one must not decide how the flow ends
                _log.debug("A result cannot be kept beyond the flow", exc_info=True)

    def _has_raised(self) -> bool:
        state = self._flow_run.state if self._flow_run else None
        data: Any = state.data if state is not None else None
        return isinstance(data.result if isinstance(data, ResultRecord) else data, BaseException)


def _seconds_to_flush(exc: object, state: State[Any] | None) -> float:
    """Return how long the last events and logs of tasks may take."""
    if exc is not None and not isinstance(exc, Exception):
        return _FLUSH_SECONDS_INTERRUPTED
    stopped = state is not None and (
        state.is_cancelling() or state.is_cancelled() or state.is_crashed()
    )
    return _FLUSH_SECONDS_INTERRUPTED if stopped else _FLUSH_SECONDS


def _is_urgent(flush_seconds: float) -> bool:
    # A task's process has as long as its driver gives it.
    return flush_seconds < _FLUSH_SECONDS and not TaskProcess.is_in_task()


def _flush(seconds: float) -> None:
    is_urgent = _is_urgent(seconds)
    try:
        telemetry().flush(seconds, patiently=not is_urgent)
    except BaseException:  # the flow is stopped while it waits for an API that is behind
        if not is_urgent:
            telemetry().flush(_FLUSH_SECONDS_INTERRUPTED)
        raise


def _refuse_transaction(task: Task[Any, Any]) -> None:
    """Refuse a submit that a transaction is open around: a rollback would not undo the task."""
    if not is_in_transaction_of_user():
        return
    raise TransactionAround(
        f"Task {task.name!r} is submitted inside `with transaction()`. RayTaskRunner runs it in "
        "another process, where it would be committed at once and never rolled back. Call the task "
        "without `.submit`, or open the transaction inside a task."
    )


def _runner(kind: type[T], settings: dict[str, Any]) -> T:
    return kind(**settings)


_log = get_logger("task_runner.ray")

# More would be a burden for a cluster that others use, for a flow that may submit one task.
_MOST_PROCESSES = 16


def warm_up() -> None:
    """Have Ray start and warm a process on each CPU that is free now, and do not wait for it."""
    import ray

    try:
        free = int(ray.available_resources().get("CPU", 0))
        warm = ray.remote(num_cpus=1, max_retries=0, num_returns=0)(import_what_tasks_need)
        for _ in range(min(free, _MOST_PROCESSES)):
            warm.options(name="RayTaskRunner: import Prefect").remote()
    except Exception:
        _log.debug("Processes are not warmed up", exc_info=True)


def import_what_tasks_need() -> None:
    """Import, in a process of the cluster, what running a task imports."""
    import prefect_ray_worker.task_runner.execution  # noqa: F401  # pyright: ignore[reportUnusedImport]
