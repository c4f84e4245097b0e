"""`Wake`: makes a worker look for runs at once, when Prefect says that there are some."""

import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from logging import Logger, LoggerAdapter
from uuid import UUID

import anyio
from prefect.client.schemas.objects import WorkPool

from prefect_ray_worker.prefect_api.pool import RunChange, changes_of_runs
from prefect_ray_worker.shared.backoff import Backoff

# A connection that stood for so long was a good one, also if a proxy closed it for being idle.
_STOOD_SECONDS = 30.0
# Between two looks: a thousand events in a burst make a handful of looks.
_GAP_SECONDS = 1.0
# A slow API gets fewer looks.
_GAP_IN_LOOKS = 4
# A claim takes about a tenth of a second. The worker whose turn is next waits a little longer, as
# its own claim would only be refused.
_TURN_SECONDS = 0.4
_LAST_TURN = 5


class Wake:
    """Looks for scheduled and cancelled runs when they occur. The worker's poll remains as the net.

    Every worker of a pool gets every event. They look one after the other, in an order that
    differs from run to run, so that as a rule one worker asks for a run, and the load is spread.

    Args:
        look: Looks for scheduled runs, and begins to submit them.
        look_for_cancelled: Makes the worker ask at once which runs are being cancelled.
        turn: Returns how many workers of the pool come before this one for a run.
        log: Told when there are no events, and when they are back.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[object]],
        look_for_cancelled: Callable[[], None],
        turn: Callable[[UUID], int],
        log: "Logger | LoggerAdapter[Logger]",
    ) -> None:
        self._look = look
        self._look_for_cancelled = look_for_cancelled
        self._turn = turn
        self._log = log
        self._due = math.inf
        self._earlier = anyio.Event()
        self._is_deaf = False

    def within(self, seconds: float) -> None:
        """Look for scheduled runs within a time, or when the gap to the last look has passed."""
        due = anyio.current_time() + seconds
        if due < self._due:
            self._due = due
            self._earlier.set()

    async def run(self, pool: Callable[[], WorkPool]) -> None:
        """Listen and look, until cancelled.

        Args:
            pool: Returns the worker's pool; raises before it is known.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, pool, name="ray-wake-listener")
            while True:
                await self._until_due()
                self._due = math.inf
                began = anyio.current_time()
                try:
                    await self._look()
                except Exception as exc:  # noqa: BLE001 (the poll says so, and ends what must end)
                    self._log.debug("A look for scheduled runs failed: %s", exc)
                took = anyio.current_time() - began
                await anyio.sleep(max(_GAP_SECONDS, _GAP_IN_LOOKS * took))

    async def _until_due(self) -> None:
        while (wait := self._due - anyio.current_time()) > 0:
            self._earlier = anyio.Event()
            with anyio.move_on_after(min(wait, 3600.0)):
                await self._earlier.wait()

    async def _listen(self, pool: Callable[[], WorkPool]) -> None:
        backoff = Backoff()
        while True:
            reason = "the connection was closed"
            began = anyio.current_time()
            try:
                async with aclosing(changes_of_runs(pool().id)) as changes:
                    async for change in changes:
                        self._hear(change)
            except Exception as exc:  # noqa: BLE001 (Prefect raises plain Exception as well)
                reason = str(exc) or type(exc).__name__
            if not self._is_deaf:
                self._log.info(
                    "No events from Prefect (%s). The worker finds its runs by polling.", reason
                )
                self._is_deaf = True
            if anyio.current_time() - began > _STOOD_SECONDS:
                backoff.reset()
            await anyio.sleep(backoff.next())

    def _hear(self, change: RunChange | None) -> None:
        if change is None:  # connected: what came meanwhile made no event here
            self.within(0.0)
            if self._is_deaf:
                self._log.info("Prefect's events arrive again.")
                self._is_deaf = False
        elif change.change == "scheduled":
            turn = min(self._turn(change.flow_run_id), _LAST_TURN)
            self.within(turn * _TURN_SECONDS)
        else:
            self._look_for_cancelled()
