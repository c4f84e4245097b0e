"""A third process, started only when an engine died without a word: says so to Prefect.

It loads the flow anew, in a clean process, to run its `on_crashed` hooks once.
"""

import os
import sys
import tempfile
from pathlib import Path
from uuid import UUID

import anyio
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from prefect_ray_worker.driver.endings import Endings
from prefect_ray_worker.driver.hooks import run_hooks
from prefect_ray_worker.driver.supervise import lifeline
from prefect_ray_worker.prefect_api.compat import load_flow, prepare_workspace
from prefect_ray_worker.shared.deaths import of_exit
from prefect_ray_worker.shared.memory_kills import MemoryKills


def main(arguments: list[str]) -> int:
    """Report the death of an engine.

    Args:
        arguments: The flow run's id, the attempt's, the engine's exit code, what the kernel has
            counted meanwhile, and the most memory that a process has used.
    """
    lifeline.hold()
    flow_run_id, attempt, code, kills, peak = arguments
    death = of_exit(int(code), MemoryKills(kills), peak=int(peak))
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(flow_run_id))
        endings = Endings(client, flow_run.id, attempt)
        endings.cancelled("Cancelled; the driver's engine has ended.")
        state = endings.crashed(str(death))
    if state is not None:
        _run_crashed_hooks(flow_run, state)
    return 0


def _run_crashed_hooks(flow_run: FlowRun, state: State) -> None:
    logger = flow_run_logger(flow_run)
    with tempfile.TemporaryDirectory(
        prefix="prefect-flow-run-", ignore_cleanup_errors=True
    ) as folder:
        try:
            entrypoint = anyio.run(prepare_workspace, flow_run.id, Path(folder))
            os.environ["PREFECT__FLOW_ENTRYPOINT"] = entrypoint
            sys.path.insert(0, str(Path.cwd()))
            flow = load_flow(flow_run)
        except Exception:
            logger.exception("The flow could not be loaded to run its on_crashed hooks.")
            return
        run_hooks(flow.on_crashed_hooks or [], flow, flow_run, state)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
