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
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SettingsContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.settings import get_current_settings

from prefect_ray_worker.prefect_api.compat.events import send_event_by_websocket
from prefect_ray_worker.shared.run_rules import is_not_taken


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
_BATCH = 500
# nginx takes requests up to 1 MiB unless it is told otherwise.
_BATCH_BYTES = 1_000_000
# What may wait for an API that does not answer; more is held back for a while.
_MOST_WAITING = 100_000
_BACK_PRESSURE_SECONDS = 10.0
_PATIENCE_SECONDS = 60.0
_RETRY_SECONDS = 1.0
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
        # Of the request under way, and of those that follow it.
        self._sending = TelemetryBatch([], [])
        self._is_wanted = False
        self._is_taken = False
        self._oldest = 0.0

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

    def flush(self, seconds: float) -> bool:
        """Send everything now; return whether it was done in time, and log an error if not."""
        with self._changed:
            self._is_wanted = True
            self._changed.notify_all()
            done = self._changed.wait_for(self._is_empty, seconds)
            self._is_wanted = False
            events = len(self._events) + len(self._sending.events)
            logs = len(self._logs) + len(self._sending.logs)
        if not done:
            _log.error(
                "%d events and %d lines of logs of tasks could not be sent to the Prefect API "
                "within %g s. They are lost if this process ends now.",
                *(events, logs, seconds),
            )
        return done

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
            rest = self._oldest + self._moment - time.monotonic()
            if rest <= 0 or self._is_wanted:
                return
            self._changed.wait(rest)

    def _keep_or_say(self, batch: TelemetryBatch) -> None:
        with self._changed:
            if self._is_taken:
                self._events[:0], self._logs[:0] = batch.events, batch.logs
                return
        _log.exception("Events or logs of tasks could not be sent to the Prefect API")

    def _send(self, settings: SettingsContext | None, batch: TelemetryBatch) -> None:
        if settings is not None:
            settings.model_copy().__enter__()
        sender = _sender_for(settings)
        sender.gives_up = lambda: self._is_taken
        log_bytes = get_current_settings().logging.to_api.batch_size
        events = self._send_all(sender, batch.events, sender.events, len, _BATCH)
        logs = self._send_all(
            sender, batch.logs, sender.logs, _size_of_log, _MOST_WAITING, log_bytes
        )
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
        sender: "TelemetrySender",
        items: list[Any],
        send: Callable[[Any], None],
        size_of: Callable[[Any], int],
        most: int,
        most_bytes: int = _BATCH_BYTES,
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
        return lost


class TelemetrySender:
    """Send events and logs to one Prefect API.

    Args:
        client: An open client, for this thread only.

    Attributes:
        gives_up: Whether somebody else would rather send it, where the API is away.
        most_bytes: The largest request that the API takes, as far as is known.
    """

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client
        self._takes_batches = True
        self._is_away = False
        self.most_bytes = _BATCH_BYTES
        self.gives_up: Callable[[], bool] = lambda: False

    def events(self, events: list[bytes]) -> None:
        """Record events."""
        if self._takes_batches:
            try:
                self._patiently("/events", b"[" + b",".join(events) + b"]")
            except PrefectHTTPStatusError as exc:
                # A proxy's 404 has been waited out by now.
                if exc.response.status_code not in (401, 403, 404, 405):
                    raise
                # An API that wants its events one by one.
                self._takes_batches = False
            else:
                return
        for event in events:
            send_event_by_websocket(event)

    def logs(self, logs: list[dict[str, Any]]) -> None:
        """Record lines of logs."""
        self._patiently("/logs/", json.dumps(logs).encode())

    def _patiently(self, path: Any, content: bytes) -> None:
        # Patience for each of many requests would hold the items of hours.
        deadline = time.monotonic() + (0 if self._is_away else _PATIENCE_SECONDS)
        headers = {"Content-Type": "application/json"}
        while True:
            try:
                self._client.request("POST", path, content=content, headers=headers)
            except (httpx.TransportError, PrefectHTTPStatusError) as exc:
                passes = _passes(exc)
                self._is_away = passes and time.monotonic() > deadline
                if self._is_away or self.gives_up() or not passes:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                self._is_away = False
                return


def _passes(exc: Exception) -> bool:
    """Return whether to send again: the API is away, or has taken nothing and is busy.

    FastAPI answers `Not Found` as JSON for a path that an API does not have.
    """
    if not isinstance(exc, PrefectHTTPStatusError):
        return True
    answer = exc.response
    is_of_an_api = "json" in answer.headers.get("content-type", "")
    if answer.status_code == int(httpx.codes.NOT_FOUND) and is_of_an_api:
        return False
    return is_not_taken(answer.status_code, answer.content)


_senders: dict[str, TelemetrySender] = {}


def _sender_for(settings: SettingsContext | None) -> TelemetrySender:
    # Keyed by what a client is made of: making one costs 18 ms, and a thread to keep it.
    key = repr(settings.settings.api) + repr(settings.settings.client) if settings else ""
    if key not in _senders:
        client = get_client(sync_client=True)
        client.__enter__()
        _senders[key] = TelemetrySender(client)
    return _senders[key]


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
