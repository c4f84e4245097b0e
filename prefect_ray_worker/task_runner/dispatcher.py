"""`Dispatcher`: tracks submitted tasks until their final state is known.

Ray calls back, in a thread that must not wait, when a task's end has arrived. One thread of ours
takes over from there: it resolves futures, forwards telemetry, launches tasks that had to wait
for their turn, and reports tasks whose process has died.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from prefect.client.schemas.objects import State
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from prefect_ray_worker.errors import RayShutDown
from prefect_ray_worker.task_runner import losses
from prefect_ray_worker.task_runner.cancelling import Canceller
from prefect_ray_worker.task_runner.futures import when_done
from prefect_ray_worker.task_runner.heap import Heap
from prefect_ray_worker.task_runner.inputs import foreign_among
from prefect_ray_worker.task_runner.interrupts import SECONDS_TO_END
from prefect_ray_worker.task_runner.orphans import OrphanSweeper
from prefect_ray_worker.task_runner.pending import PendingTask
from prefect_ray_worker.task_runner.plain import from_ray
from prefect_ray_worker.task_runner.session import await_shutdown, job_id
from prefect_ray_worker.task_runner.task_end import UNSENDABLE, TaskEnd, describe, is_infrastructure
from prefect_ray_worker.task_runner.telemetry import Telemetry
from prefect_ray_worker.task_runner.waiting import OpenRefs, wait_for

# Together under 3 s, after which Ray kills a stopped job's processes.
_URGENT_SECONDS = 0.9
_FORCED_SECONDS = 0.6
_TELL_SECONDS = 1.0
_SETTLERS = 8
# How often to look whether Ray is still there, while nothing arrives.
_LOOK_SECONDS = 1.0
_SHUT_DOWN = "Ray was shut down in the flow's process before the task had ended."

_log = get_logger("task_runner.ray")


class Dispatcher:
    """Launch tasks, a limited number at a time, and resolve their futures.

    Args:
        limit: How many unfinished tasks Ray may have; the others wait here, in order.
        telemetry: Sends the events and logs that come with the ends of tasks.
    """

    def __init__(self, limit: int, telemetry: Telemetry) -> None:
        self._limit = limit
        self._telemetry = telemetry
        self._changed = threading.Condition()
        self._submitted: set[PendingTask] = set()
        # Of these, those whose state is reported in the background.
        self._reported: set[PendingTask] = set()
        self._waiting: deque[PendingTask] = deque()
        self._held: set[PendingTask] = set()
        # Cancelled, and their process has not said how they ended.
        self._silent: list[PendingTask] = []
        self._killed: list[PendingTask] = []
        self._is_cancelled = False
        self._arrived: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._context = copy_context()
        self._settlers: ThreadPoolExecutor | None = None
        self._emits = False
        self._heap = Heap()
        self._sweeper = OrphanSweeper()
        # What names the Ray that has the tasks.
        self._job: str | None = None
        self._canceller: Canceller | None = None

    @property
    def has_reported(self) -> bool:
        """Whether states were reported that a task's process could not report."""
        return self._emits

    def launch(self, pending: PendingTask) -> None:
        """Give a task to Ray, as soon as it is its turn and Ray can wait for its upstream runs."""
        self._start_once()
        foreign = foreign_among(pending.sources)
        if not foreign:
            if self._has_turn(pending):
                try:
                    self._launch(pending)
                except BaseException:
                    self._forget(pending)
                    raise
            return
        with self._changed:
            self._held.add(pending)
        try:
            when_done(foreign, lambda: self._arrived.put(lambda: self._release(pending)))
        except BaseException:  # a future of a flow run asks the API
            with self._changed:
                self._held.discard(pending)
                self._changed.notify_all()
            raise

    def _start_once(self) -> None:
        with self._changed:  # a flow's threads may submit at once
            if self._thread is not None:
                return
            self._context = copy_context()
            thread = threading.Thread(
                target=self._context.copy().run,
                args=(self._run,),
                name="ray-dispatcher",
                daemon=True,
            )
            thread.start()
            self._thread = thread

    def finish(self) -> None:
        """Wait until every task has ended."""
        wait_for(self._changed, lambda: not (self._submitted or self._waiting or self._held))

    def cancel(self, *, is_urgent: bool = True) -> None:
        """Cancel every task: gently, and what has not ended in time by force.

        Args:
            is_urgent: Whether this process has only 3 s left.
        """
        with self._changed:
            if self._is_cancelled:
                return
            self._is_cancelled = True
            waiting, self._waiting = [*self._waiting, *self._held], deque()
            self._held.clear()
            submitted = list(self._submitted)
        for pending in waiting:
            self._resolve_cancelled(pending)
        gentle_seconds = _URGENT_SECONDS if is_urgent else SECONDS_TO_END
        for force, seconds in ((False, gentle_seconds), (True, _FORCED_SECONDS)):
            canceller = self._canceller
            if submitted and canceller is not None and self._job == job_id():
                canceller.cancel([p.future.end_ref for p in submitted], force=force)
            with self._changed:
                self._changed.wait_for(lambda: not self._submitted, seconds)
                submitted = list(self._submitted)
        for pending in submitted:
            self._abandon(pending, killed=True)
        if self._silent:
            # Prefect leaves the flow run's context before the runner: without it, events would
            # take the runs away from their flow run (`task_run_recorder.py`, 3.8.8).
            self._context.run(self._tell_cancelled)

    def _tell_cancelled(self) -> None:
        try:
            self._emits |= losses.report_cancelled(self._silent, self._killed, _TELL_SECONDS)
        except Exception:
            _log.exception("The API could not be told that tasks are cancelled")

    def stop(self) -> None:
        """End the threads; nothing is launched afterwards."""
        self._arrived.put(None)
        self._canceller = None  # its reference must not be dropped while Ray shuts down
        if self._sweeper.has_swept and self._job == job_id():
            self._sweeper.sweep()  # for what nested tasks have left, which Ray ends a little later
        if self._settlers is not None:
            self._settlers.shutdown(wait=True, cancel_futures=True)

    def _has_turn(self, pending: PendingTask) -> bool:
        with self._changed:
            if not self._is_cancelled and (self._waiting or len(self._submitted) >= self._limit):
                self._waiting.append(pending)
                return False
            self._submitted.add(pending)
            return True

    def _release(self, pending: PendingTask) -> None:
        with self._changed:
            if pending not in self._held:
                return  # cancelled meanwhile
            self._held.remove(pending)
            has_turn = self._has_turn(pending)
        if has_turn:
            self._launch_or_settle(pending)

    def _launch_or_settle(self, pending: PendingTask) -> None:
        """Launch in a thread of ours, where nobody else would learn that it has failed."""
        try:
            self._launch(pending)
        except Exception as exc:
            self._lose(pending, exc)

    def _launch(self, pending: PendingTask) -> None:
        if self._is_cancelled:
            self._resolve_cancelled(pending)
            return
        self._look_at_job()
        pending.launch()
        OpenRefs.add(ref := pending.telemetry_ref)

        def arrived(done: "Future[Any]") -> None:
            OpenRefs.discard(ref)
            self._arrived.put(lambda: self._handle_end(pending, done))

        ref.future().add_done_callback(arrived)

    def _run(self) -> None:
        while True:
            try:
                handle = self._arrived.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                handle = self._look_for_ray
            if handle is None:
                return
            try:
                handle()
                self._launch_next()
            except Exception:
                _log.exception("The end of a task could not be processed")
            handle = None  # it would keep the task, its future and the result until the next

    def _look_at_job(self) -> None:
        job = job_id()
        if job is None or self._job not in (None, job):  # a call would start another Ray
            raise RayShutDown(_SHUT_DOWN)
        if self._canceller is None:
            self._canceller = Canceller()
        self._job = job

    def _look_for_ray(self) -> None:
        """Crash what Ray will never say anything of: somebody has shut it down."""
        if self._job in (None, job_id()):
            return
        with self._changed:
            self._submitted.update(self._waiting)  # it is nobody's turn any more
            self._waiting.clear()
            lost = self._submitted - self._reported
        for pending in lost:
            self._lose(pending, RayShutDown(_SHUT_DOWN))

    def _launch_next(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or len(self._submitted) >= self._limit:
                    return
                pending = self._waiting.popleft()
                self._submitted.add(pending)
            self._launch_or_settle(pending)

    def _handle_end(self, pending: PendingTask, done: "Future[Any]") -> None:
        try:
            end, batch = from_ray(done.result())
        except BaseException as exc:  # it has to reach whoever waits
            self._look_into(pending, exc, done)
            return
        self._telemetry.put(batch.events, batch.logs)
        if end.trouble:
            overrules = end.trouble == UNSENDABLE
            state = end.restore(None)  # it has no result
            state.name = state.type.value.title()
            self._end_once(self._report, pending, state, losses.known_by(pending, end), overrules)
        elif pending.retried_at is not None and losses.seems_older_than_retry(pending, end):
            self._end_once(self._report_again, pending, end, losses.known_by(pending))
        else:
            self._resolve(pending, end)

    def _resolve(self, pending: PendingTask, end: State[Any] | TaskEnd) -> None:
        pending.future.resolve(end)
        self._forget(pending)
        self._heap.one_more()

    def _forget(self, pending: PendingTask) -> None:
        with self._changed:
            self._submitted.discard(pending)
            self._reported.discard(pending)
            self._changed.notify_all()

    def _resolve_cancelled(self, pending: PendingTask) -> None:
        pending.future.forget_refs()
        self._resolve(pending, losses.cancelled(pending))

    def _abandon(self, pending: PendingTask, *, killed: bool) -> None:
        self._silent.append(pending)
        if killed:
            self._killed.append(pending)
        self._resolve_cancelled(pending)

    def _look_into(self, pending: PendingTask, exc: BaseException, done: "Future[Any]") -> None:
        """Find out whether a task, an upstream one or its process has failed Ray."""
        open_upstream = [source for source in pending.given if not source.is_done]
        if self._is_cancelled:
            # Otherwise Ray had not begun it.
            self._abandon(pending, killed=is_infrastructure(exc))
        elif open_upstream:
            again = lambda: self._arrived.put(lambda: self._handle_end(pending, done))  # noqa: E731
            when_done(open_upstream, again)
        elif pending.has_lost_upstream or pending.has_rerun_upstream:
            # Ray has not run it. Now it can, or the engine has to say that it is not ready.
            self._launch_or_settle(pending)
        elif pending.infra_retries > 0 and is_infrastructure(exc):
            pending.infra_retries -= 1
            pending.has_died = True
            self._in_background(self._retry, pending, exc)
        else:
            self._lose(pending, exc)

    def _retry(self, pending: PendingTask, exc: BaseException) -> None:
        _run_log().warning(
            "Task run '%s' is run again, %s more times if need be: %s",
            pending.name,
            pending.infra_retries,
            describe(exc),
        )
        self._in_background(self._sweeper.sweep)
        self._tell(losses.report_retry, pending, exc)
        self._launch_or_settle(pending)

    def _lose(self, pending: PendingTask, exc: BaseException) -> None:
        # The time counts from here: thousands may be lost at once, and are settled a few at a time.
        self._end_once(self._settle, pending, exc, losses.known_by(pending))

    def _end_once(self, work: Callable[..., None], pending: PendingTask, *arguments: Any) -> None:
        """Report and resolve a task in the background, unless that is done already."""
        with self._changed:
            if pending not in self._submitted or pending in self._reported:
                return
            self._reported.add(pending)
        self._in_background(work, pending, *arguments)

    def _settle(self, pending: PendingTask, exc: BaseException, until: float | None) -> None:
        await_shutdown()  # the references go below
        state = losses.lost(pending, exc)
        _run_log().error(
            "Task run '%s' has %s: %s", pending.name, state.type.value.lower(), state.message
        )
        if is_infrastructure(exc):
            self._in_background(self._sweeper.sweep)
        # Before it is resolved: tasks that need it look at once whether Ray has it.
        pending.future.forget_refs()
        self._report(pending, state, until)

    def _report(
        self, pending: PendingTask, state: Any, until: float | None, overrules: bool = False
    ) -> None:
        self._tell(losses.report, pending, state, until, overrules=overrules)
        self._resolve(pending, state)
        self._arrived.put(self._launch_next)  # its place is free

    def _report_again(self, pending: PendingTask, end: TaskEnd, until: float | None) -> None:
        self._tell(losses.report_again, pending, end, until)
        self._resolve(pending, end)
        self._arrived.put(self._launch_next)

    def _tell(
        self, report: Callable[..., None], pending: PendingTask, *what: Any, **how: Any
    ) -> None:
        """Report a state; the flow goes on, too, if that raises."""
        try:
            report(pending, *what, **how)
            self._emits = True
        except Exception:
            _log.exception("The state of task run %s could not be reported", pending.name)

    def _in_background(self, work: Callable[..., None], *arguments: Any) -> None:
        with self._changed:
            if self._settlers is None:
                self._settlers = ThreadPoolExecutor(_SETTLERS, thread_name_prefix="ray-losses")
        context = copy_context()
        self._settlers.submit(context.run, _loudly, work, *arguments)


def _loudly(work: Callable[..., None], *arguments: Any) -> None:
    try:
        work(*arguments)
    except Exception:
        _log.exception("The loss of a task could not be processed")


def _run_log() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return _log
