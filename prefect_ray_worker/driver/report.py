"""A third process, started only when an engine died silently: it reports the death to Prefect.

It loads the flow anew, in a clean process, to run its `on_crashed` hooks once.
"""

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from prefect_ray_worker.driver.api import ApiTrouble
from prefect_ray_worker.driver.claim import open_client
from prefect_ray_worker.driver.endings import Endings, run_hooks
from prefect_ray_worker.driver.last_words import flush_output
from prefect_ray_worker.driver.source import Workspace, source_of
from prefect_ray_worker.driver.supervise.processes import hold_lifeline
from prefect_ray_worker.prefect_api import marking
from prefect_ray_worker.shared.deaths import of_exit
from prefect_ray_worker.shared.log_marks import seal_of
from prefect_ray_worker.shared.memory_kills import MemoryKills


def main(arguments: list[str]) -> int:
    """Report the death of an engine.

    Args:
        arguments: The flow run's id, the attempt, the engine's exit code, a `MemoryKills`, and the
            most memory that a process of the run has used, in bytes.
    """
    hold_lifeline()
    flow_run_id, attempt, code, kills, peak = arguments
    marking.install(seal_of(attempt))  # or the worker would forward what is sent from here
    death = of_exit(int(code), MemoryKills(kills), peak=int(peak))
    try:
        opened = open_client()
    except ApiTrouble as exc:
        print(f"Prefect cannot be told how the run ended: {exc}", file=sys.stderr)
        return exc.code
    with opened as client:
        flow_run = client.read_flow_run(UUID(flow_run_id))
        endings = Endings(client, flow_run.id, attempt)
        endings.cancelled("Cancelled; the driver's engine has ended.")
        endings.released()
        state = endings.crashed(death)
    if state is not None:
        _run_crashed_hooks(flow_run, state)
    return 0


def _run_crashed_hooks(flow_run: FlowRun, state: State) -> None:
    with Workspace(flow_run, source_of(flow_run)) as workspace:
        try:
            with _unheard():
                flow = workspace.open_flow()
        except Exception:
            logger = flow_run_logger(flow_run)
            logger.exception("The flow could not be loaded to run its on_crashed hooks.")
            return
        run_hooks(flow.on_crashed_hooks or [], flow, flow_run, state)


@contextmanager
def _unheard() -> Generator[None]:
    """Discard what is logged and printed meanwhile: the engine's run of it is in the log already.

    The pull steps and the flow's module say the same again, also from processes that they start.
    """
    flush_output()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logging.disable(logging.CRITICAL)
    try:
        for number, _ in kept:
            os.dup2(nowhere, number)
        yield
    finally:
        flush_output()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
