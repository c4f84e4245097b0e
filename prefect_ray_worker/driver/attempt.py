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
import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.engine import handle_engine_signals
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError, TerminationSignal
from prefect.flow_engine import run_flow
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from prefect_ray_worker.driver.api_trouble import with_wrong_api, without_api
from prefect_ray_worker.driver.cancelling import CancellingWatch
from prefect_ray_worker.driver.claim import Standing, claim
from prefect_ray_worker.driver.endings import STOPPED_OUTSIDE, Endings
from prefect_ray_worker.driver.hooks import OnceHooks
from prefect_ray_worker.driver.loading import of_load_failure
from prefect_ray_worker.driver.signals import Termination
from prefect_ray_worker.prefect_api.compat import (
    do_not_join_heartbeats,
    drive_flow_result,
    load_flow,
    prepare_workspace,
    run_metrics,
)
from prefect_ray_worker.shared.exits import DriverExit

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
        # A ValueError: what has answered is no JSON, or describes no flow run.
        except (ObjectNotFound, ValueError) as exc:
            return with_wrong_api(exc, str(client.api_url))
        except (PrefectHTTPStatusError, httpx.TransportError) as exc:
            return without_api(exc, str(client.api_url))
        try:
            answer = claim(client, flow_run, attempt)
        except (PrefectHTTPStatusError, httpx.TransportError) as exc:
            return without_api(exc, str(client.api_url))
        endings = Endings(client, answer.flow_run.id, attempt)
        match answer.standing:
            case Standing.SETTLED:
                print(f"Nothing to do: {answer.reason}.", file=sys.stderr)
                return 0
            case Standing.CANCELLING:
                endings.cancelled("Cancelled before the flow started.")
                return 0
            case Standing.GRANTED:
                return Attempt(answer.flow_run, attempt, endings, termination).run()


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
        name: The attempt's name.
        endings: Ends the run, from the main thread.
        termination: Owns this process's SIGTERM.
    """

    def __init__(
        self, flow_run: FlowRun, name: str, endings: Endings, termination: Termination
    ) -> None:
        self._flow_run = flow_run
        self._name = name
        self._endings = endings
        self._termination = termination
        self._hooks: OnceHooks | None = None
        self._entrypoint: str | None = None
        self._logger = flow_run_logger(flow_run)
        self._watch = CancellingWatch(
            flow_run.id,
            name,
            termination,
            grace=float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", _DEFAULT_GRACE_SECONDS)),
            force=self._force,
        )

    def run(self) -> int:
        """Prepare, load and run the flow; return the process's exit code."""
        self._watch.start()
        self._warn_of_another_prefect()
        # Git clones and the like must not meet those of other runs on the node.
        with tempfile.TemporaryDirectory(
            prefix="prefect-flow-run-", ignore_cleanup_errors=True
        ) as folder:
            try:
                flow = self._load(Path(folder))
            except TerminationSignal:
                return self._settle(
                    self._endings, said="Cancelled while the flow was being prepared."
                )
            except Exception as exc:
                self._logger.exception("The flow could not be loaded.")
                self._endings.crashed(str(of_load_failure(exc, self._entrypoint)))
                return DriverExit.REPORTED
            return self._execute(flow)

    def _warn_of_another_prefect(self) -> None:
        wanted = os.environ.get("PREFECT_RAY_WORKER_PREFECT_VERSION", prefect.__version__)
        if wanted.split(".")[:2] != prefect.__version__.split(".")[:2]:
            self._logger.warning(
                "The Ray cluster has Prefect %s and the worker %s. If the run behaves oddly, put "
                '"prefect==%s" into runtime_env.pip, or into the image of the Ray nodes.',
                prefect.__version__,
                wanted,
                wanted,
            )

    def _load(self, folder: Path) -> Flow[..., Any]:
        self._entrypoint = anyio.run(prepare_workspace, self._flow_run.id, folder)
        os.environ["PREFECT__FLOW_ENTRYPOINT"] = self._entrypoint
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
            try:
                with (
                    handle_engine_signals(self._flow_run.id),
                    run_metrics(self._flow_run, flow),
                ):
                    logger = cast("Any", self._logger)  # an adapter, and taken as one by Prefect
                    result = run_flow(flow, flow_run=self._flow_run, error_logger=logger)
                    drive_flow_result(flow, result)
            finally:
                self._termination.withdraw()
        except (SystemExit, TerminationSignal) as exc:
            if self._termination.delivered:
                return self._settle(self._endings)
            code = getattr(exc, "code", None)
            return code if isinstance(code, int) else 1
        return 0

    def _settle(self, endings: Endings, *, said: str = "Cancelled.") -> int:
        """Tell Prefect why the run was told to end, where its engine has not; return the code.

        Args:
            endings: Ends the run, from the calling thread.
            said: What to say of a cancellation.
        """
        match self._watch.intent:
            case "cancel":
                if self._hooks is not None:
                    self._hooks.run_cancellation_hooks(self._flow_run)
                endings.cancelled(said)
            case "reschedule":
                endings.rescheduled()
            case "relinquish":
                pass
            case None:
                state = endings.crashed(STOPPED_OUTSIDE)
                if state is not None and self._hooks is not None:
                    self._hooks.run_crashed_hooks(self._flow_run, state)
                return DriverExit.REPORTED
        return 0

    def _force(self) -> NoReturn:
        """End a flow that was told to end and has not, from the watch's thread."""
        code = 1
        try:
            with get_client(sync_client=True) as client:
                endings = Endings(client, self._flow_run.id, self._name)
                said = "Cancelled; the flow did not react and was killed."
                code = self._settle(endings, said=said)
        finally:
            os._exit(code)
