"""One attempt at a flow run, in this process: check, prepare, load, run.

The steps, in order:

1. `claim`: nothing of the user's runs unless this attempt is wanted, and only once.
2. From then on a cancellation, or a SIGTERM, is noticed and ends whatever goes on.
3. Prepare: pull steps, in a folder of the run's own.
4. Load the flow and run it, as `python -m prefect.engine` would.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.engine import handle_engine_signals
from prefect.exceptions import PrefectHTTPStatusError, TerminationSignal
from prefect.flow_engine import run_flow
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from prefect_ray_worker._prefect_compat import (
    Intent,
    do_not_join_heartbeats,
    drive_flow_result,
    load_flow,
    prepare_workspace,
    run_metrics,
)
from prefect_ray_worker.driver import endings
from prefect_ray_worker.driver.cancelling import CancellingWatch
from prefect_ray_worker.driver.claim import Standing, claim
from prefect_ray_worker.driver.exits import DriverExit
from prefect_ray_worker.driver.hooks import OnceHooks
from prefect_ray_worker.driver.termination import Termination

_DEFAULT_GRACE_SECONDS = 30.0
_API_PATIENCE_SECONDS = 60.0


def run_attempt(flow_run_id: str, attempt: str, *, termination: Termination) -> int:
    """Run one attempt at a flow run and return the process's exit code.

    Args:
        flow_run_id: The run.
        attempt: The attempt that this job was submitted for.
        termination: Owns this process's SIGTERM.
    """
    with get_client(sync_client=True) as client:
        try:
            flow_run = _patiently(lambda: client.read_flow_run(UUID(flow_run_id)))
            answer = claim(client, flow_run, attempt)
        except (PrefectHTTPStatusError, httpx.TransportError) as exc:
            return endings.without_api(exc, str(client.api_url))
        run = Attempt(answer.flow_run, client, termination)
        match answer.standing:
            case Standing.SETTLED:
                print(f"Nothing to do: {answer.reason}.", file=sys.stderr)
                return 0
            case Standing.CANCELLING:
                endings.cancelled(client, answer.flow_run, "Cancelled before the flow started.")
                return 0
            case Standing.GRANTED:
                return run.run()


def _patiently(ask: Callable[[], FlowRun]) -> FlowRun:
    """Ask until the API answers: it may be restarting just now."""
    deadline = time.monotonic() + _API_PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


class Attempt:
    """A granted attempt.

    Args:
        flow_run: The run.
        client: An open client, for the main thread.
        termination: Owns this process's SIGTERM.
    """

    def __init__(
        self, flow_run: FlowRun, client: SyncPrefectClient, termination: Termination
    ) -> None:
        self._flow_run = flow_run
        self._client = client
        self._termination = termination
        self._hooks: OnceHooks | None = None
        self._logger = flow_run_logger(flow_run)
        self._watch = CancellingWatch(
            flow_run.id,
            termination,
            grace=float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", _DEFAULT_GRACE_SECONDS)),
            force=self._force,
        )

    def run(self) -> int:
        """Prepare, load and run the flow; return the process's exit code."""
        self._watch.start()
        # Git clones and the like must not meet those of other runs on the node.
        with tempfile.TemporaryDirectory(
            prefix="prefect-flow-run-", ignore_cleanup_errors=True
        ) as folder:
            try:
                flow = self._load(Path(folder))
            except TerminationSignal:
                return self._ended_early()
            except Exception as exc:
                self._logger.exception("The flow could not be loaded.")
                message = f"The flow could not be loaded: {type(exc).__name__}: {exc}"
                endings.crashed(self._client, self._flow_run, message)
                return DriverExit.REPORTED
            return self._execute(flow)

    def _load(self, folder: Path) -> Flow[..., Any]:
        entrypoint = anyio.run(prepare_workspace, self._flow_run.id, folder)
        os.environ["PREFECT__FLOW_ENTRYPOINT"] = entrypoint
        here = str(Path.cwd())
        sys.path.insert(0, here)
        # For processes that the flow starts: they have to find its modules as well.
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *([inherited] if inherited else [])])
        flow = load_flow(self._flow_run)
        self._hooks = OnceHooks(flow)
        return flow

    def _execute(self, flow: Flow[..., Any]) -> int:
        do_not_join_heartbeats()
        try:
            with (
                handle_engine_signals(self._flow_run.id),
                run_metrics(self._flow_run, flow),
            ):
                logger = cast("Any", self._logger)  # an adapter, and taken as one by Prefect
                result = run_flow(flow, flow_run=self._flow_run, error_logger=logger)
                drive_flow_result(flow, result)
        except SystemExit as exc:
            if self._watch.intent == "reschedule":
                endings.rescheduled(self._client, self._flow_run)
            return exc.code if isinstance(exc.code, int) else 1
        except TerminationSignal:
            return DriverExit.REPORTED  # by the engine, as a crash
        finally:
            self._termination.withdraw()
        return 0

    def _ended_early(self) -> int:
        """Settle a run that was told to end before its engine had begun."""
        match self._watch.intent:
            case "cancel":
                if self._hooks is not None:
                    self._hooks.run_cancellation_hooks(self._flow_run)
                endings.cancelled(
                    self._client, self._flow_run, "Cancelled while the flow was being prepared."
                )
                return 0
            case "reschedule":
                endings.rescheduled(self._client, self._flow_run)
                return 0
            case "relinquish":
                return 0
            case _:
                endings.crashed(self._client, self._flow_run, endings.STOPPED_OUTSIDE)
                return DriverExit.REPORTED

    def _force(self, intent: Intent | None) -> NoReturn:
        """End a flow that was told to end and has not, from the watch's thread."""
        try:
            with get_client(sync_client=True) as client:
                if intent == "cancel":
                    if self._hooks is not None:
                        self._hooks.run_cancellation_hooks(self._flow_run)
                    endings.cancelled(
                        client, self._flow_run, "Cancelled; the flow did not react and was killed."
                    )
                elif intent == "reschedule":
                    endings.rescheduled(client, self._flow_run)
                elif intent is None:
                    endings.crashed(client, self._flow_run, endings.STOPPED_OUTSIDE)
        finally:
            os._exit(0 if intent is not None else DriverExit.REPORTED)
