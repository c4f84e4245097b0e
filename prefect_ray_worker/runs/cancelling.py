"""`CancellingRuns`: which runs of the pool are being cancelled, asked once for all runs."""

import logging
import math
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from uuid import UUID

import anyio

from prefect_ray_worker.shared.backoff import Backoff, jittered

_log = logging.getLogger("prefect.workers.ray.cancelling")


class CancellingRuns:
    """Knows which flow runs are in Cancelling, by one request every few seconds for all.

    Nothing is asked while no run is attended to.

    Args:
        ask: Returns the ids of the pool's runs that are being cancelled.
        interval: Seconds between two questions.
    """

    def __init__(self, ask: Callable[[], Awaitable[set[UUID]]], *, interval: float) -> None:
        self._ask = ask
        self._interval = interval
        # Runs, and when attention to them began; two attempts at one run may overlap.
        self._attended: list[tuple[UUID, float]] = []
        self._cancelling: set[UUID] = set()
        self._wake = anyio.Event()

    def __contains__(self, flow_run_id: object) -> bool:
        return flow_run_id in self._cancelling

    @contextmanager
    def attended(self, flow_run_id: UUID) -> Generator[None, None, None]:
        """Keep asking about a run for as long as the context is open."""
        attention = (flow_run_id, anyio.current_time())
        self._attended.append(attention)
        self._wake.set()
        try:
            yield
        finally:
            self._attended.remove(attention)
            self._cancelling.discard(flow_run_id)

    async def run(self) -> None:
        """Ask, for ever; meant for a background task of whoever owns this."""
        backoff = Backoff(initial=self._interval)
        while True:
            if not self._attended:
                await self._wake.wait()
            self._wake = anyio.Event()
            began = anyio.current_time()
            try:
                found = await self._ask()
                # An older answer is about an earlier attempt: a cancelled run can be run again.
                since = dict(self._attended)
                self._cancelling = {run for run in found if since.get(run, math.inf) <= began}
                backoff.reset()
                await anyio.sleep(jittered(self._interval))
            except Exception as exc:  # noqa: BLE001 (cancelling must survive any API trouble)
                _log.warning("Cannot ask Prefect which runs are being cancelled: %s", exc)
                await anyio.sleep(backoff.next())
