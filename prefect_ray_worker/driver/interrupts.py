"""`InterruptWatch`: notices in the background that the run has to end, and ends it.

Four things start it: the run is Cancelling; it was ended, or scheduled again, from outside; another
attempt at it has begun; or a SIGTERM from outside. The first two come by an event, with polling as
a fallback. In each case the run's state decides what the end means: a SIGTERM alone does not say.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, NoReturn
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import TerminationSignal

from prefect_ray_worker.driver.api import in_a_line, passes
from prefect_ray_worker.driver.endings import STOPPED_OUTSIDE, is_suspended
from prefect_ray_worker.driver.signals import Termination, raise_in_thread
from prefect_ray_worker.driver.state_guard import StateGuard, crash_with
from prefect_ray_worker.prefect_api.compat.flows import set_termination_intent
from prefect_ray_worker.prefect_api.compat.tasks import end_task_threads
from prefect_ray_worker.shared.ids import (
    INFRASTRUCTURE_RETRY,
    attempt_name,
    overdue_label,
    present_claim,
)
from prefect_ray_worker.shared.run_rules import Backoff

# As Prefect's own executor does when its event subscription is down (3.8.8).
_POLL_SECONDS = 10.0
_RECONNECT_SECONDS = 5.0
_SIGTERM_POLL_SECONDS = 0.1
# How long tasks in threads get to end, once the flow has been interrupted.
_TASKS_SECONDS = 1.0

# How long to ask what a SIGTERM means: Ray gives the job 30 s until it kills it.
_MEANING_SECONDS = 5.0
# How long a flow gets to end whose run has a state from outside: its slot may be in use again.
_SETTLED_GRACE_SECONDS = 5.0
# Those that Prefect's API or an automation sets; others are noticed by polling.
_GIVEN_UP = ("Cancelled", "Completed", "Crashed", "Failed", "Scheduled", "Resuming")

Meaning = Literal["cancel", "reschedule", "relinquish", "settled"]
"""What the end of a run means; None in its place is a crash."""

# As the variable PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR names them; anything else is a crash.
_BEHAVIORS: dict[str, Meaning] = {"reschedule": "reschedule", "relinquish": "relinquish"}

_log = logging.getLogger("prefect.ray.driver")


class Interrupted(TerminationSignal):
    """Interrupts a flow. It takes no arguments, so that any thread can raise it."""

    def __init__(self) -> None:
        super().__init__(signal=signal.SIGTERM)


class InterruptWatch:
    """Watches one run from a thread of its own.

    Attributes:
        meaning: What the end means, once it has been delivered; None for a crash.

    Args:
        flow_run_id: The run.
        attempt: The attempt that this process runs.
        termination: Delivers the end to the main thread.
        guard: Knows which of the run's states its flow has set.
        grace: Seconds that the flow gets to end once it has been interrupted.
        force: Called in the watch's thread when it has not ended; must not return.
    """

    def __init__(
        self,
        flow_run_id: UUID,
        attempt: str,
        termination: Termination,
        guard: StateGuard,
        *,
        grace: float,
        force: Callable[[], NoReturn],
    ) -> None:
        self._run_id = flow_run_id
        self._attempt = attempt
        self._termination = termination
        self._guard = guard
        self._grace = grace
        self._force = force
        self._is_cancelled = False
        self._is_superseded = False
        self._looked_at: UUID | None = None
        self.meaning: Meaning | None = None

    def start(self) -> None:
        """Begin to watch; the thread ends with the process."""
        threading.Thread(target=self._run, name="driver-interrupts", daemon=True).start()

    def _run(self) -> None:
        try:
            self.meaning = anyio.run(self._watch)
        except Exception:
            _log.exception("The driver cannot notice a cancellation of its run any more")
            return
        self._prepare_engine()
        end_task_threads(partial(raise_in_thread, exception=Interrupted), within=_TASKS_SECONDS)
        self._termination.deliver(Interrupted)
        is_settled = self.meaning == "settled"
        time.sleep(min(self._grace, _SETTLED_GRACE_SECONDS) if is_settled else self._grace)
        self._force()

    def _prepare_engine(self) -> None:
        """Tell Prefect's engine what the coming interruption means for the run and its subflows.

        Before the signal, as Prefect does: its engine reads the intent under a lock, which the
        signal could interrupt. Without an intent it crashes the run and all its subflows; the guard
        keeps a state of the run that was set from outside.
        """
        outside = self._guard.outside
        match self.meaning:
            case "cancel":
                set_termination_intent("cancel")
            case "settled" if outside is not None and outside.is_cancelled():
                set_termination_intent("cancel")
            case "settled":
                name = outside.name if outside is not None else None
                crash_with(f"The flow run was set to {name} from outside; its flow was ended.")
            case None:
                crash_with(str(STOPPED_OUTSIDE))
            case _:
                set_termination_intent("relinquish")

    async def _watch(self) -> Meaning | None:
        asked = anyio.Event()
        async with get_client() as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._await_sigterm, asked, name="await-sigterm")
                tasks.start_soon(self._subscribe, client, asked, name="subscribe-cancelling")
                tasks.start_soon(self._poll, client, asked, name="poll-cancelling")
                await asked.wait()
                tasks.cancel_scope.cancel()
            return await self._meaning(client)

    async def _await_sigterm(self, asked: anyio.Event) -> None:
        while not self._termination.requested.is_set():
            self._termination.hold()
            await anyio.sleep(_SIGTERM_POLL_SECONDS)
        asked.set()

    async def _subscribe(self, client: PrefectClient, asked: anyio.Event) -> None:
        wanted = EventFilter(
            event=EventNameFilter(
                name=[f"prefect.flow-run.{name}" for name in ("Cancelling", *_GIVEN_UP)]
            ),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{self._run_id}"]),
        )
        while True:
            try:
                async with get_events_subscriber(filter=wanted) as events:
                    # A cancellation before the subscription sends no event any more.
                    await self._look(client, asked)
                    async for event in events:
                        if event.event.endswith(".Cancelling"):
                            self._is_cancelled = True
                            asked.set()
                            return
                        await self._look(client, asked)
            except Exception as exc:
                _log.debug("The subscription to cancelling events failed: %s", exc)
            await anyio.sleep(_RECONNECT_SECONDS)

    async def _poll(self, client: PrefectClient, asked: anyio.Event) -> None:
        while True:
            await anyio.sleep(_POLL_SECONDS)
            await self._look(client, asked)

    async def _look(self, client: PrefectClient, asked: anyio.Event) -> None:
        try:
            run = await client.read_flow_run(self._run_id)
        except Exception as exc:
            _log.debug("Looking whether the run is being cancelled failed: %s", exc)
            return
        if run.state is not None and run.state.is_cancelling():
            self._is_cancelled = True
            asked.set()
        elif not self._guard.is_ending and (outside := self._from_outside(run)) is not None:
            _log.warning("The flow run was set to %s from outside: this driver ends.", outside.name)
            asked.set()
        elif await self._has_gone_on(client, run):
            _log.warning("Another attempt at this flow run has begun: this one ends.")
            self._is_superseded = True
            asked.set()

    def _from_outside(self, run: FlowRun) -> State | None:
        is_retry = run.state is not None and run.state.name == INFRASTRUCTURE_RETRY
        return None if is_retry else self._guard.notice(run)  # a worker has given this attempt up

    async def _has_gone_on(self, client: PrefectClient, run: FlowRun) -> bool:
        """Return whether another attempt has taken the run over: ours was given up for dead."""
        if run.state is None or run.state.id == self._looked_at:
            return False
        if run.state.name == INFRASTRUCTURE_RETRY:
            return True
        try:
            claim_id = present_claim(await client.read_flow_run_states(self._run_id))
        except Exception as exc:
            _log.debug("Looking for another attempt at the run failed: %s", exc)
            return False
        self._looked_at = run.state.id
        return claim_id is not None and attempt_name(claim_id) != self._attempt

    async def _read_patiently(self, client: PrefectClient) -> FlowRun | None:
        """Return the run; None if Prefect does not say in the little time that there is."""
        backoff, trouble = Backoff(0.2), "no answer"
        # Prefect's client repeats a request for a minute by itself (3.8.8): only this ends it.
        with anyio.move_on_after(_MEANING_SECONDS):
            while True:
                try:
                    return await client.read_flow_run(self._run_id)
                except Exception as exc:
                    trouble = in_a_line(exc)
                    if not passes(exc):
                        break
                await anyio.sleep(backoff.next())
        _log.warning("Cannot ask Prefect why this run has to end: %s", trouble)
        return None

    async def _meaning(self, client: PrefectClient) -> Meaning | None:
        """Return what the end of the run means by its state; None for a crash."""
        run = await self._read_patiently(client)
        state = run.state.type if run is not None and run.state is not None else None
        if self._is_superseded:
            return "relinquish"
        if self._guard.outside is not None:
            return "settled"
        if state == StateType.CANCELLING or (run is None and self._is_cancelled):
            return "cancel"
        is_own_end = state in TERMINAL_STATES and self._guard.is_ending
        if run is not None and not is_own_end and self._guard.notice(run) is not None:
            return "settled"
        if state in TERMINAL_STATES or (run is not None and is_suspended(run)):
            return "relinquish"
        if run is not None and overdue_label(self._attempt) in run.labels:
            return None  # another attempt would exceed the limit as well
        behavior = os.environ.get("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "").lower()
        return _BEHAVIORS.get(behavior)
