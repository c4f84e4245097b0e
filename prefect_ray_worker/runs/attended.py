"""`AttendedRuns`: which runs of this worker are being cancelled, or were settled by somebody else.

It asks Prefect. `settle` acts on the answers, and `stop` stops the jobs.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Generator
from contextlib import contextmanager
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient

from prefect_ray_worker.prefect_api.active_runs import cancelling_runs, not_pending, settled_runs
from prefect_ray_worker.shared.backoff import Backoff, jittered

# The longest interval: a cancelled run should not have to wait for a slow poll of Ray.
_QUICK_SECONDS = 2.0
# A burst of events makes few requests.
_GAP_SECONDS = 0.25

_log = logging.getLogger("prefect.workers.ray.cancelling")


class AttendedRuns:
    """Tracks which attended runs match a query, for example those being cancelled.

    One request every few seconds covers all attended runs. No request is sent while no run is
    attended.

    Args:
        ask: Returns the runs that match. It need not report runs that are not attended.
        interval: Seconds between requests.
        what: The query in words, for the worker's log: "which runs are being cancelled".
    """

    def __init__(
        self,
        ask: Callable[[Collection[UUID]], Awaitable[set[UUID]]],
        *,
        interval: float,
        what: str,
    ) -> None:
        self._ask = ask
        self._interval = interval
        self._what = what
        # Each run and when its attendance began. Two attempts of one run can overlap.
        self._attended: list[tuple[UUID, float]] = []
        self._found: set[UUID] = set()
        self._wake = anyio.Event()
        self._hurry = anyio.Event()

    def __contains__(self, flow_run_id: object) -> bool:
        return flow_run_id in self._found

    def look_now(self) -> None:
        """Send the next request at once, for example because an event says that a run changed."""
        self._hurry.set()

    @contextmanager
    def attended(self, flow_run_id: UUID) -> Generator[None, None, None]:
        """Include a run in the requests while the context is open."""
        attention = (flow_run_id, anyio.current_time())
        self._attended.append(attention)
        self._wake.set()
        try:
            yield
        finally:
            self._attended.remove(attention)
            self._found.discard(flow_run_id)

    async def run(self) -> None:
        """Send the requests forever. Run this in a background task."""
        backoff = Backoff(initial=self._interval)
        while True:
            if not self._attended:
                await self._wake.wait()
            self._wake = anyio.Event()
            self._hurry = anyio.Event()
            began = anyio.current_time()
            try:
                found = await self._ask({run for run, _ in self._attended})
                # A cancelled run can be run again, so ignore answers from before this attempt.
                since = dict(self._attended)
                self._found = {run for run in found if since.get(run, math.inf) <= began}
                backoff.reset()
                await anyio.sleep(min(_GAP_SECONDS, self._interval))
                with anyio.move_on_after(jittered(self._interval)):
                    await self._hurry.wait()
            except Exception as exc:  # noqa: BLE001 (the loop must survive any API error)
                _log.warning("Cannot ask Prefect %s: %s", self._what, exc)
                await anyio.sleep(backoff.next())


class SettledRuns(AttendedRuns):
    """Tracks which attended runs have ended, or were scheduled again, by any hand.

    Args:
        ask: Returns these runs, and whether certainly by another hand than their driver's or ours.
        interval: Seconds between requests.
    """

    def __init__(
        self, ask: Callable[[Collection[UUID]], Awaitable[dict[UUID, bool]]], *, interval: float
    ) -> None:
        super().__init__(self._ask_both, interval=interval, what="which runs have been settled")
        self._ask_settled = ask
        self._outside: set[UUID] = set()

    async def _ask_both(self, run_ids: Collection[UUID]) -> set[UUID]:
        settled = await self._ask_settled(run_ids)
        self._outside = {run_id for run_id, is_outside in settled.items() if is_outside}
        return set(settled)

    def from_outside(self, flow_run_id: UUID) -> bool:
        """Return whether a run was certainly settled by another hand than its driver's or ours."""
        return flow_run_id in self and flow_run_id in self._outside


class Attendance:
    """What is asked about all runs of a worker together, instead of about each one.

    Attributes:
        cancelling: Which runs are being cancelled.
        settled: Which runs have ended, or were scheduled again.
        unsubmitted: Which runs do not wait for their job any more, being settled or deleted.

    Args:
        prefect: Returns an open client.
        poll_interval: Seconds between two polls of a cluster with many jobs.
    """

    def __init__(self, prefect: Callable[[], PrefectClient], poll_interval: float) -> None:
        quick = min(poll_interval, _QUICK_SECONDS)
        self.cancelling = AttendedRuns(
            lambda run_ids: cancelling_runs(prefect(), run_ids),
            interval=quick,
            what="which runs are being cancelled",
        )
        self.settled = SettledRuns(
            lambda run_ids: settled_runs(prefect(), run_ids), interval=2 * quick
        )
        self.unsubmitted = AttendedRuns(
            lambda run_ids: not_pending(prefect(), run_ids),
            interval=quick,
            what="which runs wait for their cluster",
        )

    async def run(self) -> None:
        """Ask until cancelled. Run this in a background task."""
        async with anyio.create_task_group() as tasks:
            for runs in (self.cancelling, self.settled, self.unsubmitted):
                tasks.start_soon(runs.run)
