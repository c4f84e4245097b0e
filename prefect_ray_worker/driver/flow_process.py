"""`FlowProcess`: runs the flow of one granted attempt in this process.

The steps, in order:

1. `claim`: no code of the user's runs unless this attempt is wanted, and only once.
2. From then on a cancellation, or a SIGTERM, is noticed and ends the flow.
3. Get the flow, in a folder of the run's own: pull steps, or the bundle of its caller.
4. Run it, as `python -m prefect.engine` would.
"""

import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from logging import LoggerAdapter
from typing import Any, NoReturn
from uuid import UUID

import httpx
import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.engine import handle_engine_signals
from prefect.exceptions import PrefectHTTPStatusError, TerminationSignal
from prefect.flow_engine import run_flow
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_API_URL

from prefect_ray_worker.bundles.answers import Answering
from prefect_ray_worker.driver.api import ApiTrouble, trouble_with_api
from prefect_ray_worker.driver.claim import Standing, claim, open_client
from prefect_ray_worker.driver.endings import STOPPED_OUTSIDE, Endings, OnceHooks
from prefect_ray_worker.driver.interrupts import InterruptWatch
from prefect_ray_worker.driver.last_words import explained
from prefect_ray_worker.driver.signals import Termination
from prefect_ray_worker.driver.source import BundleSource, FlowSource, Workspace, source_of
from prefect_ray_worker.driver.state_guard import StateGuard
from prefect_ray_worker.prefect_api.compat.flows import (
    do_not_join_heartbeats,
    drive_flow_result,
    run_metrics,
)
from prefect_ray_worker.shared.environment import PREFECT_VERSION
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.masking import masked

_DEFAULT_GRACE_SECONDS = 30.0


def run_attempt(flow_run_id: str, attempt: str, *, termination: Termination) -> int:
    """Run one attempt at a flow run and return the process's exit code.

    Args:
        flow_run_id: The run.
        attempt: The attempt that this job was submitted for.
        termination: Owns this process's SIGTERM.
    """
    try:
        opened = open_client()
    except ApiTrouble as exc:
        return explained(exc.code, exc.diagnosis, attempt)
    with opened as client:
        try:
            answer = claim(client, UUID(flow_run_id), attempt)
        except ApiTrouble as exc:
            return explained(exc.code, exc.diagnosis, attempt)
        endings = Endings(client, answer.flow_run.id, attempt)
        match answer.standing:
            case Standing.SETTLED:
                print(f"Nothing to do: {answer.reason}.", file=sys.stderr)
                return 0
            case Standing.CANCELLING:
                endings.cancelled("Cancelled before the flow started.")
                return 0
            case Standing.GRANTED:
                source = source_of(answer.flow_run)
                return FlowProcess(answer.flow_run, attempt, source, endings, termination).run()


class _UntilEnded(LoggerAdapter[Any]):
    """Logs the engine's own failures, but nothing that the run's log or state has already.

    That is an interruption that the driver wanted, and the exception of a flow that has ended.
    """

    def __init__(self, termination: Termination, guard: StateGuard, logger: Any) -> None:
        super().__init__(logger)
        self._termination = termination
        self._guard = guard

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 (of logging)
        """Return whether a record of a level would be logged now."""
        is_told = self._termination.delivered or self._guard.has_ended
        return not is_told and super().isEnabledFor(level)


class FlowProcess:
    """Runs the flow of one granted attempt.

    Args:
        flow_run: The run.
        attempt: The attempt's name.
        source: Gives the flow.
        endings: Ends the run, from the main thread.
        termination: Owns this process's SIGTERM.
    """

    def __init__(
        self,
        flow_run: FlowRun,
        attempt: str,
        source: FlowSource,
        endings: Endings,
        termination: Termination,
    ) -> None:
        self._flow_run = flow_run
        self._attempt = attempt
        self._source = source
        self._endings = endings
        self._termination = termination
        self._hooks: OnceHooks | None = None
        self._logger = flow_run_logger(flow_run)
        self._guard = StateGuard(flow_run)
        self._watch = InterruptWatch(
            flow_run.id,
            attempt,
            termination,
            self._guard,
            grace=float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", _DEFAULT_GRACE_SECONDS)),
            force=self._force,
        )

    def run(self) -> int:
        """Prepare, load and run the flow; return the process's exit code."""
        self._watch.start()
        self._warn_of_another_prefect()
        with Workspace(self._flow_run, self._source) as workspace:
            try:
                flow = workspace.open_flow()
                self._hooks = OnceHooks(flow)
            except TerminationSignal:
                return self._settle(
                    self._endings, message="Cancelled while the flow was being prepared."
                )
            except Exception as exc:
                return self._report_unloaded(exc)
            return self._execute(flow)

    def _report_unloaded(self, exc: Exception) -> int:
        trace = "".join(traceback.format_exception(exc))
        self._logger.error("The flow could not be loaded.\n%s", masked(trace))
        diagnosis, code = self._source.explain(exc), DriverExit.REPORTED
        try:
            self._endings.crashed(diagnosis)
        except (PrefectHTTPStatusError, httpx.TransportError) as away:
            # Nobody but the worker can settle the run now.
            code = trouble_with_api(away, str(PREFECT_API_URL.value())).code
        return explained(code, diagnosis, self._attempt)

    def _warn_of_another_prefect(self) -> None:
        wanted = os.environ.get(PREFECT_VERSION, prefect.__version__)
        if wanted.split(".")[:2] != prefect.__version__.split(".")[:2]:
            self._logger.warning(
                "The Ray cluster has Prefect %s and the worker %s. If the run behaves oddly, put "
                '"prefect==%s" into runtime_env.pip, or into the image of the Ray nodes.',
                prefect.__version__,
                wanted,
                wanted,
            )

    def _execute(self, flow: Flow[..., Any]) -> int:
        do_not_join_heartbeats()
        with self._answering() as answering:
            self._guard.install(answering.leave if answering else None)
            return self._run_flow(flow)

    @contextmanager
    def _answering(self) -> Generator[Answering | None]:
        """Return what sends the flow's value to its caller; None if nobody waits for it."""
        if not isinstance(self._source, BundleSource):
            yield None
            return
        with get_client(sync_client=True) as client:
            yield Answering(
                client,
                self._flow_run.id,
                self._attempt,
                with_values=self._source.values_by_inputs,
            )

    def _run_flow(self, flow: Flow[..., Any]) -> int:
        code = 0
        try:
            try:
                with (
                    handle_engine_signals(self._flow_run.id),
                    run_metrics(self._flow_run, flow),
                ):
                    logger: Any = _UntilEnded(self._termination, self._guard, self._logger)
                    result = run_flow(
                        flow,
                        flow_run=self._flow_run,
                        parameters=self._source.parameters(self._flow_run),
                        error_logger=logger,
                    )
                    drive_flow_result(flow, result)
            finally:
                self._termination.withdraw()
        except (SystemExit, TerminationSignal) as exc:
            if self._termination.delivered:
                return self._settle(self._endings)
            # Otherwise the flow had come to its end, and the state from outside stands.
            if self._guard.outside is None:
                given = getattr(exc, "code", None)
                code = given if isinstance(given, int) else 1
        if not self._guard.has_ended:
            self._endings.released()
        return code

    def _settle(self, endings: Endings, *, message: str = "Cancelled.") -> int:
        """Set the last state of an interrupted run where Prefect's engine has not; return the code.

        Args:
            endings: Ends the run, from the calling thread.
            message: The message of a Cancelled state.
        """
        match self._watch.meaning:
            case "cancel":
                if self._hooks is not None:
                    self._hooks.run_cancellation_hooks(self._flow_run)
                endings.cancelled(message)
            case "reschedule":
                endings.rescheduled()
            case "settled":
                outside = self._guard.outside
                if outside is not None:
                    endings.restored(outside)
                if outside is not None and outside.is_cancelled() and self._hooks is not None:
                    self._hooks.run_cancellation_hooks(self._flow_run)
                endings.released()
            case "relinquish":
                endings.released()
            case None:
                state = endings.crashed(STOPPED_OUTSIDE)
                if state is not None and self._hooks is not None:
                    self._hooks.run_crashed_hooks(self._flow_run, state)
                return explained(DriverExit.REPORTED, STOPPED_OUTSIDE, self._attempt)
        return 0

    def _force(self) -> NoReturn:
        """End an interrupted flow that goes on, from the thread of the watch."""
        code: int = DriverExit.FORCED
        try:
            with get_client(sync_client=True) as client:
                endings = Endings(client, self._flow_run.id, self._attempt)
                message = "Cancelled; the flow did not react and was killed."
                code = self._settle(endings, message=message) or DriverExit.FORCED
        finally:
            os._exit(code)
