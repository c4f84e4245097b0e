"""How a driver ends a run: its last state, never over one that stands already, and its hooks."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import anyio
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed
from prefect.utilities.engine import propose_state_sync

from prefect_ray_worker.driver.api import patiently
from prefect_ray_worker.driver.claim import present_attempt
from prefect_ray_worker.prefect_api.due_runs import policy_for_workers
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.run_rules import (
    RETRY_TYPE_OF_WORKERS,
    pauses_in_process,
    waits_in_process,
)

STOPPED_OUTSIDE = diagnosed(
    Category.STOPPED_OUTSIDE,
    "The Ray Job was told to stop (SIGTERM or SIGINT) outside Prefect: by `ray job stop`, the "
    "dashboard, or a node that goes away.",
)


class Endings:
    """Ends one attempt at a run, unless the run has ended or gone on without it.

    Args:
        client: An open client.
        flow_run_id: The run.
        attempt: The attempt that this driver was started for.
    """

    def __init__(self, client: SyncPrefectClient, flow_run_id: UUID, attempt: str) -> None:
        self._client = client
        self._run_id = flow_run_id
        self._attempt = attempt

    def cancelled(self, message: str) -> None:
        """Mark the run Cancelled if it is still Cancelling."""
        state = self._read().state
        if state is not None and state.is_cancelling() and self._is_present():
            self._propose(Cancelled(message=message))

    def crashed(self, diagnosis: Diagnosis) -> State | None:
        """Mark the run Crashed if it has not ended; return the state if Prefect accepted it."""
        if not self._goes_on_here():
            return None
        return self._propose(Crashed(message=str(diagnosis)))

    def restored(self, state: State) -> None:
        """Set a state again that came from outside, if the flow has replaced it since.

        A few milliseconds remain for that: see `StateGuard`.
        """
        now = self._read().state
        if now is not None and now.is_running() and self._is_present():
            patiently(lambda: self._client.set_flow_run_state(self._run_id, state, force=True))

    def rescheduled(self) -> None:
        """Let a worker try a run again that has not ended."""
        if not self._goes_on_here():
            return
        run = self._read()
        policy = policy_for_workers(run.empirical_policy, run.state)
        if policy is not None:
            patiently(lambda: self._client.update_flow_run(self._run_id, empirical_policy=policy))
        is_granted = self._propose(AwaitingRetry()) is not None
        if is_granted and run.state is not None and run.state.is_paused():
            self._count_next_start()

    def _count_next_start(self) -> None:
        # As the worker does in `FlowRuns.try_again`: the server takes a run that leaves a pause for
        # a resumed one, whose next attempt gets the ended subflow runs of this one (3.8.8).
        policy = self._read().empirical_policy
        if policy.resuming:
            counted = policy.model_copy(update={"resuming": False})
            patiently(lambda: self._client.update_flow_run(self._run_id, empirical_policy=counted))

    def released(self) -> None:
        """Let a worker go on with a run that is suspended, or was scheduled from outside.

        In its second try in this process a run has a policy with which no worker is given it. All
        else of the policy stays: a suspended flow needs the key of its pause to pass it.
        """
        run = self._read()
        policy = run.empirical_policy
        if policy.retry_type != "in_process" or not (is_suspended(run) or is_rescheduled(run)):
            return
        if self._is_present():
            freed = policy.model_copy(update={"retry_type": RETRY_TYPE_OF_WORKERS})
            patiently(lambda: self._client.update_flow_run(self._run_id, empirical_policy=freed))

    def _read(self) -> FlowRun:
        return patiently(lambda: self._client.read_flow_run(self._run_id))

    def _goes_on_here(self) -> bool:
        """Return whether the run goes on in this attempt, or waits or is paused in it."""
        run = self._read()
        if run.state is None or not self._is_present():
            return False
        waits_here = waits_in_process(run.state.type, run.empirical_policy.retry_type)
        is_paused_here = pauses_in_process(run.state.type, run.state.state_details.pause_reschedule)
        return run.state.is_pending() or run.state.is_running() or waits_here or is_paused_here

    def _is_present(self) -> bool:
        present = patiently(lambda: present_attempt(self._client, self._run_id))
        return present == self._attempt

    def _propose(self, state: State) -> State | None:
        try:
            # Repeated after a lost answer, it changes nothing: the state would be the same.
            result = patiently(
                lambda: propose_state_sync(self._client, state, flow_run_id=self._run_id)
            )
        except Abort:
            return None
        return result if result.type == state.type else None


def is_suspended(run: FlowRun) -> bool:
    """Return whether a run's process ends, and a later attempt goes on with the run."""
    return (
        run.state is not None
        and run.state.is_paused()
        and not pauses_in_process(run.state.type, run.state.state_details.pause_reschedule)
    )


def is_rescheduled(run: FlowRun) -> bool:
    """Return whether a run is scheduled for another attempt, not for its next try in this one.

    By its name too: the policy of a try in the process stays until the next attempt (3.8.8).
    """
    if run.state is None or not run.state.is_scheduled():
        return False
    waits_here = waits_in_process(run.state.type, run.empirical_policy.retry_type)
    return not waits_here or run.state.name != "AwaitingRetry"


def run_hooks(
    hooks: Iterable[Callable[..., Any]], flow: Flow[..., Any], flow_run: FlowRun, state: State
) -> None:
    """Run hooks as the flow engine does; one that fails does not stop the others."""
    logger = flow_run_logger(flow_run, flow)
    for hook in hooks:
        name = getattr(hook, "__name__", repr(hook))
        logger.info("Running hook %r in response to entering state %r", name, state.name)
        try:
            result = hook(flow, flow_run, state)
            if inspect.isawaitable(result):
                anyio.run(_awaited, result)
        except (Exception, SystemExit):  # the run's last state may not be set yet
            logger.exception("The hook %r failed", name)


class OnceHooks:
    """Runs a flow's `on_cancellation` hooks once: in Prefect's engine, or where that cannot, here.

    Args:
        flow: The loaded flow; its hooks are replaced by ones that know whether they have run.
    """

    def __init__(self, flow: Flow[..., Any]) -> None:
        self._flow = flow
        self._begun: set[int] = set()
        self._lock = threading.Lock()
        self._hooks = [(hook, self._once(hook)) for hook in flow.on_cancellation_hooks or []]
        flow.on_cancellation_hooks = [once for _, once in self._hooks]

    def run_cancellation_hooks(self, flow_run: FlowRun) -> None:
        """Run the hooks that have not begun."""
        left = [once for hook, once in self._hooks if id(hook) not in self._begun]
        run_hooks(left, self._flow, flow_run, Cancelling())

    def run_crashed_hooks(self, flow_run: FlowRun, state: State) -> None:
        """Run the hooks of a crash that Prefect's engine does not see."""
        run_hooks(self._flow.on_crashed_hooks or [], self._flow, flow_run, state)

    def _once(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(hook):

            @functools.wraps(hook)
            async def once_async(*args: Any, **kwargs: Any) -> Any:
                return await hook(*args, **kwargs) if self._is_first(hook) else None

            return once_async

        @functools.wraps(hook)
        def once(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs) if self._is_first(hook) else None

        return once

    def _is_first(self, hook: Callable[..., Any]) -> bool:
        with self._lock:
            first = id(hook) not in self._begun
            self._begun.add(id(hook))
        return first


async def _awaited(result: Any) -> None:
    await result
