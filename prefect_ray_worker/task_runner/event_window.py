"""`EventWindow`: how many events of tasks an API is given that it has not recorded yet.

A Prefect server keeps events in memory until it has recorded them, some 150 a second on SQLite. It
drops all that come while 10,000 wait, and answers 204 as ever (3.8.8, since PrefectHQ/prefect#19136
in `server/utilities/messaging/memory.py`). Of 6,000 tasks without work, 1,500 stayed unknown to it
or Running for ever. So the next events wait here until it shows the last state of earlier ones.
"""

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.logging import get_logger

_log = get_logger("task_runner.ray")

# Several flows share the 10,000.
_MOST = 2_000
_LOOK_SECONDS = 0.5
# Others' events may be before ours: 10,000 take a minute. Less than a flow's end waits.
_PATIENCE_SECONDS = 90.0
# Of how many states the API is asked for at once.
_MOST_MARKERS = 20
_TASK_RUN = "prefect.task-run."
# In a state change of Prefect's engine, as pydantic dumps it; events of users have one at most.
_MARKS = (f'"event":"{_TASK_RUN}'.encode(), b'"prefect.orchestration":"client"')


@dataclass(frozen=True)
class _Marker:
    """A state that the API shows when it has recorded all events up to that."""

    task_run_id: UUID
    occurred: datetime
    events: int


class EventWindow:
    """Counts the events that are on the way, and asks the API how far it has got.

    Args:
        client: An open client, for this thread only.
    """

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client
        self._sent: deque[_Marker] = deque()
        self._on_the_way = 0
        self._looked = 0.0
        self._progressed = 0.0
        # Prefect Cloud keeps what it has taken.
        self._is_needed = client.server_type != ServerType.CLOUD

    def room(self, wanted: int) -> int:
        """Return how many of so many events can be sent now."""
        if not self._is_needed:
            return wanted
        now = time.monotonic()
        if not self._sent:
            self._progressed = now
        elif self._on_the_way + wanted > _MOST and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._look(now)
        return max(0, min(wanted, _MOST - self._on_the_way))

    def sent(self, events: Sequence[bytes]) -> None:
        """Note that the API has taken events."""
        if not self._is_needed:
            return
        marker = next((e for e in reversed(events) if all(mark in e for mark in _MARKS)), None)
        if marker is None:  # no state of a task, such as those of assets: few, and without a sign
            return
        event = json.loads(marker)
        resource: str = event["resource"]["prefect.resource.id"]
        self._on_the_way += len(events)
        self._sent.append(
            _Marker(
                UUID(resource.removeprefix(_TASK_RUN)),
                datetime.fromisoformat(event["occurred"]),
                len(events),
            )
        )

    def _look(self, now: float) -> None:
        sent = list(self._sent)
        some = sent[:: -max(1, len(sent) // _MOST_MARKERS)]  # the last one, and some before
        try:
            where = TaskRunFilter(id=TaskRunFilterId(any_=[marker.task_run_id for marker in some]))
            found = self._client.read_task_runs(task_run_filter=where)
        except Exception:  # the events will not pass either
            _log.debug("How many events are recorded cannot be asked", exc_info=True)
            return
        states = {run.id: run.state.timestamp for run in found if run.state}
        last = next(
            (m for m in some if (at := states.get(m.task_run_id)) and at >= m.occurred), None
        )
        if last is not None:
            self._forget_until(last)
            self._progressed = now
        elif now - self._progressed > _PATIENCE_SECONDS:
            # Dropped all the same, or an API that records none.
            _log.warning(
                "The Prefect API has recorded none of %d events of tasks within %g s. The states "
                "of task runs may be missing there.",
                *(self._on_the_way, _PATIENCE_SECONDS),
            )
            self._forget_until(self._sent[-1])

    def _forget_until(self, last: _Marker) -> None:
        while True:
            first = self._sent.popleft()
            self._on_the_way -= first.events
            if first is last:
                return
