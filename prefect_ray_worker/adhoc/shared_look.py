"""`SharedLook`: finds out which of many runs have ended, with one request for all of them."""

import threading
import time
from collections.abc import Collection
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
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_at = -_INTERVAL_SECONDS
        self._ended: frozenset[UUID] = frozenset()

    def ended(self, client: SyncPrefectClient, run_ids: Collection[UUID]) -> frozenset[UUID]:
        """Return runs that had ended at the last look; look again if that is a while ago.

        Args:
            client: An open client.
            run_ids: All that are followed.
        """
        if self._lock.acquire(blocking=False):  # who does not look does not wait for the answer
            try:
                if time.monotonic() - self._looked_at >= _INTERVAL_SECONDS:
                    self._ended = _ended_of(client, list(run_ids))
                    self._looked_at = time.monotonic()
            finally:
                self._lock.release()
        return self._ended


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
