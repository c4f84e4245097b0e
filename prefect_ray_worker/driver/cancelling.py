"""`CancellingWatch`: notices in the background that the run is to end, and ends it.

Two things start it: a Cancelling event of the Prefect API, with polling as a fallback, and a
SIGTERM from outside. Either way the run's state says what it means; a SIGTERM alone does not.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import NoReturn
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import TerminationSignal

from prefect_ray_worker._prefect_compat import Intent, set_termination_intent
from prefect_ray_worker.driver.termination import Termination

# As Prefect's own executor does when its event subscription is down (3.8.8).
_POLL_SECONDS = 10.0
_RECONNECT_SECONDS = 5.0
_SIGTERM_POLL_SECONDS = 0.1

_log = logging.getLogger("prefect.ray.driver")


class CancellingWatch:
    """Watches one run from a thread of its own.

    Attributes:
        intent: What the end means, once it has been delivered; None for a crash.

    Args:
        flow_run_id: The run.
        termination: Delivers the end to the main thread.
        grace: Seconds that the flow may take to end once it has been told.
        force: Called in the watch's thread when it has not: must not return.
    """

    def __init__(
        self,
        flow_run_id: UUID,
        termination: Termination,
        *,
        grace: float,
        force: Callable[[Intent | None], NoReturn],
    ) -> None:
        self._run_id = flow_run_id
        self._termination = termination
        self._grace = grace
        self._force = force
        self.intent: Intent | None = None

    def start(self) -> None:
        """Begin to watch; the thread ends with the process."""
        threading.Thread(target=self._run, name="driver-cancelling", daemon=True).start()

    def _run(self) -> None:
        try:
            anyio.run(self._watch)
        except Exception:
            _log.exception("The driver cannot notice any more that its run is being cancelled")

    async def _watch(self) -> None:
        asked = anyio.Event()
        async with get_client() as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._await_sigterm, asked, name="await-sigterm")
                tasks.start_soon(self._subscribe, asked, name="subscribe-cancelling")
                tasks.start_soon(self._poll, client, asked, name="poll-cancelling")
                await asked.wait()
                tasks.cancel_scope.cancel()
            await self._end(client)

    async def _await_sigterm(self, asked: anyio.Event) -> None:
        while not self._termination.requested.is_set():
            await anyio.sleep(_SIGTERM_POLL_SECONDS)
        asked.set()

    async def _subscribe(self, asked: anyio.Event) -> None:
        wanted = EventFilter(
            event=EventNameFilter(name=["prefect.flow-run.Cancelling"]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{self._run_id}"]),
        )
        while True:
            try:
                async with get_events_subscriber(filter=wanted) as events:
                    async for _ in events:
                        asked.set()
                        return
            except Exception as exc:
                _log.debug("The subscription to cancelling events failed: %s", exc)
            await anyio.sleep(_RECONNECT_SECONDS)

    async def _poll(self, client: PrefectClient, asked: anyio.Event) -> None:
        while True:
            await anyio.sleep(_POLL_SECONDS)
            try:
                run = await client.read_flow_run(self._run_id)
            except Exception as exc:
                _log.debug("Looking whether the run is being cancelled failed: %s", exc)
                continue
            if run.state is not None and run.state.is_cancelling():
                asked.set()
                return

    async def _end(self, client: PrefectClient) -> None:
        intent = self.intent = await self._meaning(client)
        self._termination.deliver(lambda: _raise(intent))
        await anyio.sleep(self._grace)
        self._force(intent)

    async def _meaning(self, client: PrefectClient) -> Intent | None:
        """Return what the end of the run means, by its state; None for a crash."""
        try:
            run: FlowRun | None = await client.read_flow_run(self._run_id)
        except Exception as exc:
            _log.warning("Cannot ask Prefect why this run is to end: %s", exc)
            run = None
        state = run.state.type if run is not None and run.state is not None else None
        if state == StateType.CANCELLING:
            return "cancel"
        if state == StateType.CANCELLED:
            return "relinquish"  # settled already, by the server's own time limit
        if os.environ.get("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR") == "reschedule":
            return "reschedule"
        return None


def _raise(intent: Intent | None) -> NoReturn:
    if intent is not None:
        set_termination_intent(intent)
    raise TerminationSignal(signal=signal.SIGTERM)
