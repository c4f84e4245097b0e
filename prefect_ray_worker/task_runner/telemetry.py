"""`Mailbox`: the events and logs of a process, on their way to the Prefect API.

Every task process that reported by itself would open a websocket of its own, and Ray kills such
processes without letting them send what they still hold. So a task's mail comes back with its
state, and the driver posts it, in few large requests. Only what a task has to say while it runs
on is posted by its own process, after a moment.
"""

import json
import threading
import time
from collections.abc import Sequence
from contextvars import Context
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SettingsContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger

from prefect_ray_worker.prefect_api.compat import send_event_by_websocket

Mail = tuple[list[bytes], list[dict[str, Any]]]
"""Events, as JSON, and log records, as `LogCreate` dumps."""

# A driver posts what has come together in this time; a task that ends sooner posts nothing itself.
_MOMENT_SECONDS = 0.25
_TASK_MOMENT_SECONDS = 0.4
_BATCH = 500
_LOG_BATCH_BYTES = 2_000_000
# Mail that waits for an API that does not answer; what comes then waits with it, for a while.
_MOST_WAITING = 100_000
_BACK_PRESSURE_SECONDS = 10.0
_PATIENCE_SECONDS = 60.0
_RETRY_SECONDS = 1.0

_log = get_logger("task_runner.ray")


class Mailbox:
    """Collects mail and posts it from a thread of its own, which starts with the first item.

    Args:
        in_task_process: Whether the mail should rather be taken along with a task's state.
    """

    def __init__(self, *, in_task_process: bool = False) -> None:
        self._moment = _TASK_MOMENT_SECONDS if in_task_process else _MOMENT_SECONDS
        self._events: list[bytes] = []
        self._logs: list[dict[str, Any]] = []
        self._settings: SettingsContext | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_posting = False
        self._is_wanted = False
        self._oldest = 0.0

    def put(self, events: Sequence[bytes] = (), logs: Sequence[dict[str, Any]] = ()) -> None:
        """Take mail; wait for a while where the API is far behind."""
        with self._changed:
            if len(self._events) + len(self._logs) >= _MOST_WAITING:
                self._changed.wait_for(self._has_room, _BACK_PRESSURE_SECONDS)
            if not self._events and not self._logs:
                self._oldest = time.monotonic()
            self._events += events
            self._logs += logs
            self._settings = SettingsContext.get() or self._settings
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ray-mail", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def take(self) -> Mail:
        """Return what has not been posted, and forget it."""
        with self._changed:
            return self._take()

    def flush(self, seconds: float) -> bool:
        """Post everything now; return whether it was done in time."""
        with self._changed:
            self._is_wanted = True
            self._changed.notify_all()
            done = self._changed.wait_for(self._is_empty, seconds)
            self._is_wanted = False
        return done

    def _take(self) -> Mail:
        mail = self._events, self._logs
        self._events, self._logs = [], []
        self._changed.notify_all()
        return mail

    def _has_room(self) -> bool:
        return len(self._events) + len(self._logs) < _MOST_WAITING

    def _is_empty(self) -> bool:
        return not (self._events or self._logs or self._is_posting)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._events or self._logs))
                rest = self._oldest + self._moment - time.monotonic()
                if rest > 0 and not self._is_wanted:
                    self._changed.wait_for(lambda: self._is_wanted, rest)
                events, logs = self._take()
                self._is_posting = True
                settings = self._settings
            try:
                if events or logs:
                    Context().run(self._post, settings, events, logs)
            except Exception:
                _log.exception("Events or logs of tasks could not be sent to the Prefect API")
            finally:
                with self._changed:
                    self._is_posting = False
                    self._changed.notify_all()

    def _post(
        self, settings: SettingsContext | None, events: list[bytes], logs: list[dict[str, Any]]
    ) -> None:
        if settings is not None:
            settings.model_copy().__enter__()
        post = _post_office(settings)
        for start in range(0, len(events), _BATCH):
            post.events(events[start : start + _BATCH])
        for batch in _by_size(logs):
            post.logs(batch)


class PostOffice:
    """Posts to one Prefect API.

    Args:
        client: An open client, for this thread only.
    """

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client
        self._takes_batches = True

    def events(self, events: list[bytes]) -> None:
        """Record events."""
        if self._takes_batches:
            try:
                self._patiently("/events", b"[" + b",".join(events) + b"]")
            except PrefectHTTPStatusError as exc:
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
        deadline = time.monotonic() + _PATIENCE_SECONDS
        headers = {"Content-Type": "application/json"}
        while True:
            try:
                self._client.request("POST", path, content=content, headers=headers)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return


_offices: dict[str, PostOffice] = {}


def _post_office(settings: SettingsContext | None) -> PostOffice:
    # Keyed by what a client is made of: making one costs 18 ms, and a thread to keep it.
    key = repr(settings.settings.api) + repr(settings.settings.client) if settings else ""
    if key not in _offices:
        client = get_client(sync_client=True)
        client.__enter__()
        _offices[key] = PostOffice(client)
    return _offices[key]


def _by_size(logs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    batches: list[list[dict[str, Any]]] = []
    size = _LOG_BATCH_BYTES
    for log in logs:
        length = log.pop("__payload_size__", None) or len(json.dumps(log))
        if size + length > _LOG_BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(log)
        size += length
    return batches


_mailbox: Mailbox | None = None


def mailbox(*, in_task_process: bool = False) -> Mailbox:
    """Return this process's mailbox.

    Args:
        in_task_process: Which kind to make, if there is none yet.
    """
    global _mailbox  # noqa: PLW0603 (one for a process)
    if _mailbox is None:
        _mailbox = Mailbox(in_task_process=in_task_process)
    return _mailbox
