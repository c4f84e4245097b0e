"""`SharedLook`: finds out which of many runs have ended, with one request for all of them."""

import threading
import time
from collections import Counter
from typing import ClassVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

_INTERVAL_SECONDS = 0.5
# How many ids go into one question.
_IDS_AT_ONCE = 200


class SharedLook:
    """Looks for the threads that follow one run each: the first that comes looks for all.

    An answer is a hint only. Without one, each thread still reads its own run, more seldom.

    Attributes:
        followers: How many threads follow a run in this process, whatever its API.
    """

    followers: ClassVar[int] = 0
    _of_apis: ClassVar[dict[str, "SharedLook"]] = {}
    _registering: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followed: Counter[UUID] = Counter()
        self._looked_at = -_INTERVAL_SECONDS
        self._ended: frozenset[UUID] = frozenset()

    @classmethod
    def at(cls, client: SyncPrefectClient) -> "SharedLook":
        """Return the look that all clients of one API share."""
        with cls._registering:
            return cls._of_apis.setdefault(str(client.api_url), cls())

    def begin(self, run_id: UUID) -> None:
        """Look for a run, too."""
        with self._registering:
            self._followed[run_id] += 1
            SharedLook.followers += 1

    def end(self, run_id: UUID) -> None:
        """Look for it no more, unless another thread follows it."""
        with self._registering:
            self._followed -= Counter([run_id])
            SharedLook.followers -= 1

    def ended(self, client: SyncPrefectClient) -> frozenset[UUID]:
        """Return runs that had ended at the last look; look again if that is a while ago.

        Args:
            client: An open client.
        """
        if self._lock.acquire(blocking=False):  # who does not look does not wait for the answer
            try:
                if time.monotonic() - self._looked_at >= _INTERVAL_SECONDS:
                    self._ended = _ended_of(client, self._run_ids())
                    self._looked_at = time.monotonic()
            finally:
                self._lock.release()
        return self._ended

    def _run_ids(self) -> list[UUID]:
        with self._registering:
            return list(self._followed)


def _ended_of(client: SyncPrefectClient, run_ids: list[UUID]) -> frozenset[UUID]:
    # The first page of each: those that are found are not followed at the next look.
    found: set[UUID] = set()
    is_over = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES)))
    try:
        for start in range(0, len(run_ids), _IDS_AT_ONCE):
            ids = FlowRunFilterId(any_=run_ids[start : start + _IDS_AT_ONCE])
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids, state=is_over))
            found.update(run.id for run in runs)
    except (PrefectHTTPStatusError, httpx.HTTPError, ObjectNotFound):
        pass
    return frozenset(found)
