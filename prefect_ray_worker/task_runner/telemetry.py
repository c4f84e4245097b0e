"""`Telemetry`: sends the events and logs of a process to the Prefect API.

Task processes that reported for themselves would each open a websocket, and Ray kills such
processes before they have sent everything. So a task's telemetry comes back with its end, and the
driver sends it in few large requests. Only a task that runs for longer has its telemetry sent by
its own process, after a moment.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import httpx
from prefect.context import SettingsContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.settings import get_current_settings

from prefect_ray_worker.task_runner.telemetry_sender import MOST_BYTES, TelemetrySender, sender_for


@dataclass(frozen=True)
class TelemetryBatch:
    """Some events and logs.

    Attributes:
        events: Events as JSON.
        logs: Log records, as `LogCreate` dumps them.
    """

    events: list[bytes]
    logs: list[dict[str, Any]]


# A driver sends what has come together in this time; a task that ends sooner sends nothing itself.
_MOMENT_SECONDS = 0.25
_TASK_MOMENT_SECONDS = 0.4
# Of a task, while the API is behind with what the driver has sent.
_HELD_SECONDS = 30.0
# When to go on with what an API was not given yet.
_BEHIND_SECONDS = 0.5
_SAY_SECONDS = 30.0
_BATCH = 500
# What may wait for an API that does not answer; more is held back for a while.
_MOST_WAITING = 100_000
_BACK_PRESSURE_SECONDS = 10.0
# The end of a task waits for so long for a request with its logs.
_TAKE_SECONDS = 30.0

_log = get_logger("task_runner.ray")


class Telemetry:
    """Collect events and logs, and send them from a thread that starts with the first item.

    Args:
        in_task_process: Whether tasks should rather take them along with their end.
    """

    def __init__(self, *, in_task_process: bool = False) -> None:
        self._moment = _TASK_MOMENT_SECONDS if in_task_process else _MOMENT_SECONDS
        self._events: list[bytes] = []
        self._logs: list[dict[str, Any]] = []
        self._settings: SettingsContext | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # Its thread waits until there is an item. At other times it looks by itself: to be woken
        # for each item would be a third of what a task without work costs.
        self._is_idle = False
        self._is_sending = False
        # An API that is behind gets the next events when it has recorded earlier ones.
        self._is_behind = False
        self._is_paced = True
        self._number_sent = 0
        # Of the request under way, and of those that follow it.
        self._sending = TelemetryBatch([], [])
        self._is_wanted = False
        self._is_taken = False
        self._oldest = 0.0

    @property
    def is_behind(self) -> bool:
        """Whether the API has not yet recorded enough of the events that it was given."""
        return self._is_behind

    def hold(self, *, is_held: bool) -> None:
        """Have a task's telemetry wait for its end, or for half a minute."""
        moment = _HELD_SECONDS if is_held else _TASK_MOMENT_SECONDS
        if moment != self._moment:
            with self._changed:
                self._moment = moment
                self._changed.notify_all()

    def put(self, events: Sequence[bytes] = (), logs: Sequence[dict[str, Any]] = ()) -> None:
        """Add events and logs; wait for a while if the API is far behind."""
        with self._changed:
            if len(self._events) + len(self._logs) >= _MOST_WAITING:
                self._changed.wait_for(self._has_room, _BACK_PRESSURE_SECONDS)
            if not self._events and not self._logs:
                self._oldest = time.monotonic()
            self._events += events
            self._logs += logs
            self._settings = SettingsContext.get() or self._settings
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ray-telemetry", daemon=True)
                self._thread.start()
            if self._is_idle:
                self._changed.notify_all()

    def take(self) -> TelemetryBatch:
        """Return what has not been sent, and forget it.

        Waits for a request that is under way: this process may end before it does.
        """
        with self._changed:
            self._is_taken = True
            self._changed.wait_for(lambda: not self._is_sending, _TAKE_SECONDS)
            self._is_taken = False
            return self._take()

    def flush(self, seconds: float, *, patiently: bool = False) -> bool:
        """Send everything now; return whether it was done in time, and log an error if not.

        Args:
            seconds: How long it may take.
            patiently: Whether that is only the time without any progress, and an API that is
                behind is waited for. Otherwise it gets all at once.
        """
        with self._changed:
            self._is_wanted, self._is_paced = True, patiently
            self._changed.notify_all()
            done = self._wait_until_empty(seconds, patiently=patiently)
            self._is_wanted, self._is_paced = False, True
            events = len(self._events) + len(self._sending.events)
            logs = len(self._logs) + len(self._sending.logs)
        if not done:
            _log.error(
                "%d events and %d lines of logs of tasks could not be sent to the Prefect API "
                "within %g s. They are lost if this process ends now.",
                *(events, logs, seconds),
            )
        return done

    def _wait_until_empty(self, seconds: float, *, patiently: bool) -> bool:
        sent, deadline = self._number_sent, time.monotonic() + seconds
        while not self._changed.wait_for(
            self._is_empty, min(deadline - time.monotonic(), _SAY_SECONDS)
        ):
            if patiently and self._number_sent > sent:
                sent, deadline = self._number_sent, time.monotonic() + seconds
                _log.info(
                    "The Prefect API is behind: %d events of tasks wait until it has recorded "
                    "earlier ones. It can be made several times as fast: "
                    "docs/how-to/fan-out.md#many-short-tasks",
                    len(self._events) + len(self._sending.events),
                )
            if time.monotonic() >= deadline:
                return False
        return True

    def _take(self) -> TelemetryBatch:
        batch = TelemetryBatch(self._events, self._logs)
        self._events, self._logs = [], []
        if self._is_wanted or len(batch.events) + len(batch.logs) >= _MOST_WAITING:
            self._changed.notify_all()  # those who wait in `flush` and `put`
        return batch

    def _has_work(self) -> bool:
        return bool(self._events or self._logs) and not self._is_taken

    def _has_room(self) -> bool:
        return len(self._events) + len(self._logs) < _MOST_WAITING

    def _is_empty(self) -> bool:
        return not (self._events or self._logs or self._is_sending)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._await_moment()
                batch = self._sending = self._take()
                self._is_sending = True
                settings = self._settings
            try:
                if batch.events or batch.logs:
                    Context().run(self._send, settings, batch)
                    self._keep_rest(batch)
            except Exception:
                self._keep_or_say(batch)
            finally:
                with self._changed:
                    self._is_sending = False
                    self._sending = TelemetryBatch([], [])
                    self._changed.notify_all()

    def _await_moment(self) -> None:
        """Wait until the oldest item has waited for a moment, or a flush wants it now."""
        while True:
            if not self._has_work():
                self._is_idle = True
                self._changed.wait_for(self._has_work)
                self._is_idle = False
            moment = _BEHIND_SECONDS if self._is_behind else self._moment
            rest = self._oldest + moment - time.monotonic()
            if rest <= 0 or (self._is_wanted and not (self._is_behind and self._is_paced)):
                return
            self._changed.wait(rest)

    def _keep_rest(self, batch: TelemetryBatch) -> None:
        with self._changed:
            self._is_behind = bool(batch.events)
            if batch.events:
                self._events[:0] = batch.events
                self._oldest = time.monotonic()

    def _keep_or_say(self, batch: TelemetryBatch) -> None:
        with self._changed:
            if self._is_taken:
                self._events[:0], self._logs[:0] = batch.events, batch.logs
                return
        _log.exception("Events or logs of tasks could not be sent to the Prefect API")

    def _send(self, settings: SettingsContext | None, batch: TelemetryBatch) -> None:
        if settings is not None:
            settings.model_copy().__enter__()
        sender = sender_for(settings)
        sender.gives_up = lambda: self._is_taken
        log_bytes = get_current_settings().logging.to_api.batch_size
        number = len(batch.events)
        later = number - sender.window.room(number) if self._is_paced and number else 0
        held, batch.events[number - later :] = batch.events[number - later :], []
        try:
            events = self._send_all(sender, batch.events, sender.events, len, _BATCH)
            logs = self._send_all(
                sender, batch.logs, sender.logs, _size_of_log, _MOST_WAITING, log_bytes
            )
        finally:
            batch.events.extend(held)
        lost = [*events, *logs]
        if lost:
            _log.error(
                "%d events and %d lines of logs of tasks could not be sent to the Prefect API",
                sum(number for number, _ in events),
                sum(number for number, _ in logs),
                exc_info=lost[0][1],
            )

    def _send_all(
        self,
        sender: TelemetrySender,
        items: list[Any],
        send: Callable[[Any], None],
        size_of: Callable[[Any], int],
        most: int,
        most_bytes: int = MOST_BYTES,
    ) -> list[tuple[int, Exception]]:
        """Send items request by request; return how many each refused request had, and why.

        What has been sent goes from the list, so that the rest can be sent by somebody else.
        """
        lost: list[tuple[int, Exception]] = []
        while items:
            some, size = _first_of_size(items[:most], size_of, min(most_bytes, sender.most_bytes))
            try:
                send(some)
            except Exception as exc:
                if self._is_taken:
                    raise
                if len(some) > 1 and _is_too_large(exc):
                    sender.most_bytes = size // 2
                    continue
                lost.append((len(some), exc))
            del items[: len(some)]
            self._number_sent += len(some)
        return lost


def _first_of_size(
    items: list[Any], size_of: Callable[[Any], int], most_bytes: int
) -> tuple[list[Any], int]:
    """Return the first items that fit into one request, at least one; and their size."""
    total = 0
    for number, item in enumerate(items):
        size = size_of(item) + 1  # the comma
        if number and total + size > most_bytes:
            return items[:number], total
        total += size
    return items, total


def _size_of_log(log: dict[str, Any]) -> int:
    return log.pop("__payload_size__", None) or len(json.dumps(log))


def _is_too_large(exc: Exception) -> bool:
    status = exc.response.status_code if isinstance(exc, PrefectHTTPStatusError) else None
    return status == int(httpx.codes.REQUEST_ENTITY_TOO_LARGE)


_telemetry: Telemetry | None = None


def telemetry(*, in_task_process: bool = False) -> Telemetry:
    """Return this process's telemetry.

    Args:
        in_task_process: Which kind to make, if there is none yet.
    """
    global _telemetry  # noqa: PLW0603 (one for a process)
    if _telemetry is None:
        _telemetry = Telemetry(in_task_process=in_task_process)
    return _telemetry


def forget_telemetry() -> None:
    """Have a forked process begin anew: what it has inherited is its parent's to send."""
    global _telemetry  # noqa: PLW0603 (one for a process)
    _telemetry = None
