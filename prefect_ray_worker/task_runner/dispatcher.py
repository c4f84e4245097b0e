"""`Landing`: from the moment a task is submitted until its state is known.

Ray calls back, in a thread that must not wait, when a task's mail is there. One thread of ours
takes it from there: it puts states together, forwards mail, launches what had to wait its turn,
and finds out what has become of tasks whose process has died.
"""

import contextlib
import ctypes
import functools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from prefect.client.schemas.objects import State
from prefect.exceptions import MissingContextError
from prefect.futures import PrefectFuture
from prefect.logging import get_logger, get_run_logger

from prefect_ray_worker.task_runner import losses
from prefect_ray_worker.task_runner.inputs import foreign_among
from prefect_ray_worker.task_runner.pending import Flight
from prefect_ray_worker.task_runner.task_end import UNSENDABLE, Outcome, describe, is_infrastructure
from prefect_ray_worker.task_runner.telemetry import Mailbox

# Together under 3 s, after which Ray kills a stopped job's processes.
_GENTLE_SECONDS = 0.9
_FORCED_SECONDS = 0.6
_TELL_SECONDS = 1.0
_SETTLERS = 8

_log = get_logger("task_runner.ray")


class Landing:
    """Launches tasks, a limited number at a time, and resolves their futures.

    Args:
        limit: How many tasks Ray has at a time; the others wait here, in order.
        mailbox: For events and logs that come with the states.
    """

    def __init__(self, limit: int, mailbox: Mailbox) -> None:
        self._limit = limit
        self._mailbox = mailbox
        self._changed = threading.Condition()
        self._in_flight: set[Flight] = set()
        self._waiting: deque[Flight] = deque()
        self._held: set[Flight] = set()
        # Cancelled, and their process has not said how they ended.
        self._silent: list[Flight] = []
        self._killed: list[Flight] = []
        self._is_cancelled = False
        self._arrived: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._context = copy_context()
        self._settlers: ThreadPoolExecutor | None = None
        self._emits = False
        self._heap = Heap()

    @property
    def has_reported(self) -> bool:
        """Whether states were reported that a task's process could not report."""
        return self._emits

    def launch(self, flight: Flight) -> None:
        """Give a task to Ray, as soon as it is its turn and Ray can wait for its upstream runs."""
        if self._thread is None:
            self._context = copy_context()
            self._thread = threading.Thread(
                target=self._context.copy().run, args=(self._run,), name="ray-landing", daemon=True
            )
            self._thread.start()
        foreign = foreign_among(flight.sources)
        if not foreign:
            if self._has_turn(flight):
                self._take_off(flight)
            return
        with self._changed:
            self._held.add(flight)
        _when_done(foreign, lambda: self._arrived.put(lambda: self._release(flight)))

    def finish(self) -> None:
        """Wait until every task has landed."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._in_flight or self._waiting or self._held))

    def cancel(self) -> None:
        """Cancel every task: gently, after a second by force. Takes at most 3 s."""
        import ray

        with self._changed:
            if self._is_cancelled:
                return
            self._is_cancelled = True
            waiting, self._waiting = [*self._waiting, *self._held], deque()
            self._held.clear()
            flying = list(self._in_flight)
        for flight in waiting:
            self._land_cancelled(flight)
        for force, seconds in ((False, _GENTLE_SECONDS), (True, _FORCED_SECONDS)):
            for flight in flying:
                with contextlib.suppress(Exception):  # it may have ended, or Ray may have
                    ray.cancel(flight.future.outcome_ref, force=force, recursive=True)
            with self._changed:
                self._changed.wait_for(lambda: not self._in_flight, seconds)
                flying = list(self._in_flight)
        for flight in flying:
            self._lose_cancelled(flight, killed=True)
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
        if self._settlers is not None:
            self._settlers.shutdown(wait=True, cancel_futures=True)

    def _has_turn(self, flight: Flight) -> bool:
        with self._changed:
            if not self._is_cancelled and (self._waiting or len(self._in_flight) >= self._limit):
                self._waiting.append(flight)
                return False
            self._in_flight.add(flight)
            return True

    def _release(self, flight: Flight) -> None:
        with self._changed:
            if flight not in self._held:
                return  # cancelled meanwhile
            self._held.remove(flight)
            has_turn = self._has_turn(flight)
        if has_turn:
            self._take_off_here(flight)

    def _take_off_here(self, flight: Flight) -> None:
        """Launch in a thread of ours, where nobody else would learn that it has failed."""
        try:
            self._take_off(flight)
        except Exception as exc:
            self._settle(flight, exc)

    def _take_off(self, flight: Flight) -> None:
        if self._is_cancelled:
            self._land_cancelled(flight)
            return
        try:
            flight.launch()
        except BaseException:
            with self._changed:
                self._in_flight.discard(flight)
                self._changed.notify_all()
            raise

        def arrived(done: "Future[Any]") -> None:
            self._arrived.put(lambda: self._land(flight, done))

        flight.mail_ref.future().add_done_callback(arrived)

    def _run(self) -> None:
        while (handle := self._arrived.get()) is not None:
            try:
                handle()
                self._take_off_more()
            except Exception:
                _log.exception("The end of a task could not be processed")

    def _take_off_more(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or len(self._in_flight) >= self._limit:
                    return
                flight = self._waiting.popleft()
                self._in_flight.add(flight)
            self._take_off_here(flight)

    def _land(self, flight: Flight, done: "Future[Any]") -> None:
        try:
            outcome, mail = done.result()
        except BaseException as exc:  # it has to reach whoever waits
            self._look_into(flight, exc, done)
            return
        self._mailbox.put(*mail)
        if outcome.trouble:
            state = outcome.restore(flight.future.load)
            state.name = state.type.value.title()
            self._in_background(self._report, flight, state, outcome.trouble == UNSENDABLE)
        else:
            self._landed(flight, outcome)

    def _landed(self, flight: Flight, end: State[Any] | Outcome) -> None:
        flight.future.land(end)
        with self._changed:
            self._in_flight.discard(flight)
            self._changed.notify_all()
        self._heap.one_more()

    def _land_cancelled(self, flight: Flight) -> None:
        self._landed(flight, losses.cancelled(flight))
        flight.future.lose()

    def _lose_cancelled(self, flight: Flight, *, killed: bool) -> None:
        self._silent.append(flight)
        if killed:
            self._killed.append(flight)
        self._land_cancelled(flight)

    def _look_into(self, flight: Flight, exc: BaseException, done: "Future[Any]") -> None:
        """Find out whether a task, an upstream one or its process has failed Ray."""
        open_upstream = [source for source in flight.given if not source.is_done]
        if self._is_cancelled:
            # Otherwise Ray had not begun it.
            self._lose_cancelled(flight, killed=is_infrastructure(exc))
        elif open_upstream:
            again = lambda: self._arrived.put(lambda: self._land(flight, done))  # noqa: E731
            _when_done(open_upstream, again)
        elif flight.has_lost_upstream:
            # Ray has not run it; the engine has to say that it is not ready.
            self._take_off_here(flight)
        elif flight.infra_retries > 0 and is_infrastructure(exc):
            flight.infra_retries -= 1
            self._in_background(self._retry, flight, exc)
        else:
            self._in_background(self._settle, flight, exc)

    def _retry(self, flight: Flight, exc: BaseException) -> None:
        _run_log().warning(
            "Task run '%s' is run again, %s more times if need be: %s",
            flight.name,
            flight.infra_retries,
            describe(exc),
        )
        losses.report_retry(flight, exc)
        self._emits = True
        self._take_off_here(flight)

    def _settle(self, flight: Flight, exc: BaseException) -> None:
        state = losses.lost(flight, exc)
        _run_log().error(
            "Task run '%s' has %s: %s", flight.name, state.type.value.lower(), state.message
        )
        self._report(flight, state)
        flight.future.lose()

    def _report(self, flight: Flight, state: Any, overrules: bool = False) -> None:
        try:
            losses.report(flight, state, overrules=overrules)
            self._emits = True
        except Exception:
            _log.exception("The state of task run %s could not be reported", flight.name)
        self._landed(flight, state)

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


def _when_done(futures: Iterable[PrefectFuture[Any]], then: Callable[[], None]) -> None:
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


# Not for each task: threads that want to allocate wait for it.
_TASKS = 1_000


class Heap:
    """Has memory that is free given back to the operating system, now and then."""

    def __init__(self) -> None:
        self._count = 0

    def one_more(self) -> None:
        """Count a task that has ended; every thousandth time, give back what is free."""
        self._count += 1
        if self._count % _TASKS == 0:
            _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # not glibc: its own affair
        return lambda _: None
