"""`TelemetrySender`: requests with events and logs, repeated while the API is away."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SettingsContext
from prefect.exceptions import PrefectHTTPStatusError

from prefect_ray_worker.prefect_api.compat.events import send_event_by_websocket
from prefect_ray_worker.shared.run_rules import is_not_taken
from prefect_ray_worker.task_runner.event_window import EventWindow

# nginx takes requests up to 1 MiB unless it is told otherwise.
MOST_BYTES = 1_000_000
_PATIENCE_SECONDS = 60.0
_RETRY_SECONDS = 1.0


class TelemetrySender:
    """Send events and logs to one Prefect API.

    Args:
        client: An open client, for this thread only.

    Attributes:
        gives_up: Whether somebody else would rather send it, where the API is away.
        most_bytes: The largest request that the API takes, as far as is known.
        window: How many events it can take.
    """

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client
        self._takes_batches = True
        self._is_away = False
        self.most_bytes = MOST_BYTES
        self.window = EventWindow(client)
        self.gives_up: Callable[[], bool] = lambda: False

    def events(self, events: list[bytes]) -> None:
        """Record events."""
        if not (self._takes_batches and self._took_batch(events)):
            for event in events:
                send_event_by_websocket(event)
        self.window.sent(events)

    def _took_batch(self, events: list[bytes]) -> bool:
        try:
            self._patiently("/events", b"[" + b",".join(events) + b"]")
        except PrefectHTTPStatusError as exc:
            # A proxy's 404 has been waited out by now.
            if exc.response.status_code not in (401, 403, 404, 405):
                raise
            # An API that wants its events one by one.
            self._takes_batches = False
        return self._takes_batches

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


def sender_for(settings: SettingsContext | None) -> TelemetrySender:
    """Return the sender for what the settings say, one for each API."""
    # Keyed by what a client is made of: making one costs 18 ms, and a thread to keep it.
    key = repr(settings.settings.api) + repr(settings.settings.client) if settings else ""
    if key not in _senders:
        client = get_client(sync_client=True)
        client.__enter__()
        _senders[key] = TelemetrySender(client)
    return _senders[key]
