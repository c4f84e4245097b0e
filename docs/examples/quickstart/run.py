"""`make quickstart`: runs a Prefect deployment as a Ray Job on this machine, and shows its log."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from stack import POOL, STATE, Stack, environment

os.environ.update(environment())
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)

import anyio  # noqa: E402 (Prefect reads its settings when it is imported)
from prefect.client.orchestration import PrefectClient, get_client  # noqa: E402
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId  # noqa: E402
from prefect.client.schemas.objects import FlowRun, Log  # noqa: E402
from prefect.events.subscribers import FlowRunSubscriber  # noqa: E402
from prefect.exceptions import ObjectNotFound  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402
from prefect.states import Scheduled  # noqa: E402

RUN_SECONDS = 300
# The worker forwards the last lines of a job after the run has ended.
STRAGGLER_SECONDS = 4
PAGE = 200


BOLD, CYAN = "1", "36"


def say(text: str = "", style: str = "") -> None:
    """Print a line; with a style only on a terminal."""
    if style and sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        text = f"\033[{style}m{text}\033[0m"
    print(text, flush=True)


def step(text: str) -> None:
    say()
    say(f"==> {text}", BOLD)


async def until_pool_exists(client: PrefectClient) -> None:
    with anyio.fail_after(60):
        while True:
            try:
                await client.read_work_pool(POOL)
            except ObjectNotFound:
                await anyio.sleep(0.2)
            else:
                return


async def deploy(client: PrefectClient, **job_variables: Any) -> FlowRun:
    """Create the deployment and a run of it, as `prefect deploy` and `… run` would."""
    here = str(Path(__file__).resolve().parent)
    flow_id = await client.create_flow_from_name("read-handwriting")
    deployment = await client.create_deployment(
        flow_id=flow_id,
        name="quickstart",
        entrypoint="flow.py:read_handwriting",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": here}}],
        parameter_openapi_schema={"type": "object", "properties": {}},
        work_pool_name=POOL,
        job_variables=job_variables,
    )
    return await client.create_flow_run_from_deployment(deployment, state=Scheduled())


class Shown:
    """Prints each line of a run's log once, whichever way it comes."""

    def __init__(self) -> None:
        self._keys: set[tuple[object, ...]] = set()

    def show(self, line: Log) -> None:
        key = (line.timestamp, line.name, line.message)
        if key not in self._keys:
            self._keys.add(key)
            say(f"    {line.timestamp:%H:%M:%S} | {line.message}")


async def follow(client: PrefectClient, run: FlowRun) -> FlowRun:
    """Print the run's log until the run has ended."""
    shown = Shown()
    with anyio.move_on_after(RUN_SECONDS):
        try:
            async with FlowRunSubscriber(run.id, straggler_timeout=STRAGGLER_SECONDS) as items:
                async for item in items:
                    if isinstance(item, Log):
                        shown.show(item)
        except Exception:  # noqa: BLE001 (Prefect raises many kinds)
            # The user's own server may not stream logs: ask for them instead.
            await until_ended(client, run, shown)
    await show_all(client, run, shown)
    return await client.read_flow_run(run.id)


async def until_ended(client: PrefectClient, run: FlowRun, shown: Shown) -> None:
    while True:
        current = await client.read_flow_run(run.id)
        await show_all(client, run, shown)
        if current.state is not None and current.state.is_final():
            await anyio.sleep(STRAGGLER_SECONDS)
            return
        await anyio.sleep(0.5)


async def show_all(client: PrefectClient, run: FlowRun, shown: Shown) -> None:
    """Print the lines of the log that have not been printed yet."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    for offset in range(0, 10_000, PAGE):
        lines = await client.read_logs(log_filter=wanted, offset=offset, limit=PAGE)
        for line in lines:
            shown.show(line)
        if len(lines) < PAGE:
            return


async def show(up: Stack) -> bool:
    async with get_client() as client:
        await until_pool_exists(client)
        step("Deploying docs/examples/quickstart/flow.py and running it as a Ray Job")
        run = await deploy(client)
        say(f"    {up.ui_url}/runs/flow-run/{run.id}")
        return is_completed(await follow(client, run))


def is_completed(run: FlowRun) -> bool:
    """Say how a run has ended, and return whether it is Completed."""
    completed = run.state is not None and run.state.is_completed()
    state = run.state.name if run.state else "unknown"
    message = f": {run.state.message}" if run.state and run.state.message else ""
    step(f"Flow run '{run.name}' is {state}{message}")
    if not completed:
        say(f"    The worker's log is in {STATE / 'worker.log'}")
    return completed


def start_prefect(up: Stack, *, usual_port: bool = True, **worker_env: str) -> None:
    """Start what is missing of the server, and the worker."""
    if os.environ.get("PREFECT_API_URL"):
        step("Using the Prefect server of PREFECT_API_URL")
    else:
        step("prefect server start")
    up.start_server(usual_port=usual_port)
    say(f"    {up.ui_url}")
    step(f"prefect worker start --pool {POOL} --type ray")
    say("    The worker creates the pool.")
    up.start_worker(**worker_env)


NEXT = """
What to try next
    make quickstart KEEP=1                 leaves it up: see the graph and the artifacts in the UI
    make quickstart-kuberay                a RayCluster for the run, on a simulated Kubernetes
    README.md, "Connect a cluster"         run your own deployments on your own Ray cluster
    docs/tutorial/first-run.md             the same by hand, command by command"""

KEPT = """
Everything is still up
    UI:      {ui}
    logs:    {state}
    again:   make quickstart
    stop:    make quickstart-stop"""


def main() -> int:
    if "--stop" in sys.argv:
        running = Stack.kept()
        if running:
            running.stop()
        say("The quickstart is stopped." if running else "No quickstart is running.")
        return 0
    keep = os.environ.get("KEEP", "") not in ("", "0")
    began = time.monotonic()
    kept = Stack.kept()
    if kept:
        step(f"Using the Prefect server and the worker that are still up ({kept.ui_url})")
    up = kept or Stack()
    try:
        if not kept:
            start_prefect(up)
            say("    No address is configured, so it starts a local Ray cluster.")
            up.remember()
        with temporary_settings({PREFECT_API_URL: up.api_url}):
            completed = anyio.run(show, up)
    except BaseException:
        if not kept:
            up.stop()
        raise
    if keep or kept:
        say(KEPT.format(ui=up.ui_url, state=STATE))
    else:
        step("Stopping the worker, its Ray and the server")
        up.stop()
        say(NEXT)
    say(f"\n{time.monotonic() - began:.0f} s")
    return 0 if completed else 1


def run_until_interrupted(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns; Ctrl-C and SIGTERM end it in order."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("Interrupted. All of it was stopped.")
        sys.exit(130)


if __name__ == "__main__":
    run_until_interrupted(main)
