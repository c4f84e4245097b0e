"""`make quickstart`: runs a Prefect deployment as a Ray Job on this machine, and shows its log."""

import logging
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

sys.dont_write_bytecode = True  # as `environment` says

from stack import POOL, STATE, Stack, environment  # noqa: E402

os.environ.update(environment())
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)

import anyio  # noqa: E402 (Prefect reads its settings when it is imported)
from prefect.client.orchestration import PrefectClient, get_client  # noqa: E402
from prefect.client.schemas.objects import FlowRun, Log  # noqa: E402
from prefect.exceptions import ObjectNotFound  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402
from prefect.states import Cancelling, Scheduled  # noqa: E402
from prefect.utilities.callables import parameter_schema_from_entrypoint  # noqa: E402

from prefect_ray_worker.commands.run_log import RunLog, is_complete  # noqa: E402

RUN_SECONDS = 300
SHOW_ALL = os.environ.get("SHOW") == "all"


BOLD, CYAN, YELLOW, RED = "1", "36", "33", "31"


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


async def deploy(
    client: PrefectClient, entrypoint: str = "flow.py:read_handwriting", **job_variables: Any
) -> FlowRun:
    """Create a deployment and a run of it, as `prefect deploy` and `… run` would."""
    here = str(Path(__file__).resolve().parent)
    name = entrypoint.partition(":")[2].replace("_", "-")
    flow_id = await client.create_flow_from_name(name)
    deployment = await client.create_deployment(
        flow_id=flow_id,
        name="quickstart",
        entrypoint=entrypoint,
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": here}}],
        parameter_openapi_schema=parameter_schema_from_entrypoint(
            f"{here}/{entrypoint}"
        ).model_dump(),
        description="Created by make quickstart. A custom run can change the flow's parameters.",
        work_pool_name=POOL,
        job_variables=job_variables,
    )
    return await client.create_flow_run_from_deployment(deployment, state=Scheduled())


async def follow(client: PrefectClient, run: FlowRun) -> FlowRun:
    """Print the run's log until the run has ended."""
    log = RunLog(client, run)
    with anyio.move_on_after(RUN_SECONDS):
        await log.follow(say_line, is_complete)
    return await client.read_flow_run(run.id)


def say_line(line: Log) -> None:
    if line.level < logging.INFO:
        return  # what Ray says of itself in passing
    if line.task_run_id is not None and line.message.startswith("Finished in state Completed"):
        return  # once per task, and the line does not say which; the flow counts its tasks
    style = RED if line.level >= logging.ERROR else YELLOW if line.level >= logging.WARNING else ""
    head = f"    {line.timestamp:%H:%M:%S} | "
    say(head + wrapped(line.message, len(head)), style)


def wrapped(text: str, indent: int) -> str:
    """Wrap a text on a terminal at words, so that ids and addresses stay whole."""
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - indent, 40)
    lines = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        or [""]
    ]
    return f"\n{' ' * indent}".join(lines)


async def show(up: Stack) -> bool:
    async with get_client() as client:
        await until_pool_exists(client)
        step("Deploying docs/examples/quickstart/flow.py and running it as a Ray Job")
        run = await deploy(client)
        say(f"    {up.ui_url}/runs/flow-run/{run.id}")
        completed = is_completed(await follow(client, run))
        return completed and (not SHOW_ALL or await show_trouble(client))


async def show_trouble(client: PrefectClient) -> bool:
    """Show how a run ends that is killed, and one that gets no place and is cancelled."""
    step("Running a flow that is killed")
    killed = await follow(client, await deploy(client, "trouble.py:dies"))
    say_end(killed)
    step("Running a flow that asks for more than the cluster has, and cancelling it")
    run = await deploy(client, "trouble.py:wants_gpus", entrypoint_num_gpus=8)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_once_explained, client, run)
        cancelled = await follow(client, run)
        tasks.cancel_scope.cancel()
    say_end(cancelled)
    ended = [run.state.name if run.state else "" for run in (killed, cancelled)]
    return ended == ["Crashed", "Cancelled"]


async def cancel_once_explained(client: PrefectClient, run: FlowRun) -> None:
    """Cancel a run, as the button in the UI does, once its state says what it waits for."""
    while True:
        state = (await client.read_flow_run(run.id)).state
        if state is not None and state.name == "InfrastructurePending":
            say(f"    The run's state is {state.name}; its log says why. Cancelling it.", CYAN)
            await client.set_flow_run_state(run.id, Cancelling())
            return
        await anyio.sleep(0.5)


def say_end(run: FlowRun) -> None:
    """Say how a run has ended."""
    state = run.state.name if run.state else "unknown"
    message = f": {run.state.message}" if run.state and run.state.message else ""
    step(wrapped(f"Flow run '{run.name}' is {state}{message}", len("==> ")))


def is_completed(run: FlowRun) -> bool:
    """Say how a run has ended, and return whether it is Completed."""
    say_end(run)
    completed = run.state is not None and run.state.is_completed()
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
    make quickstart SHOW=all      also runs that are killed, and wait for GPUs
    make quickstart KEEP=1        leaves it up: see graph and artifacts in the UI
    make quickstart-kuberay       a RayCluster for the run, Kubernetes simulated
    docs/tutorial/first-run.md    the same by hand, command by command
    README.md                     "Connect your cluster": your flows, your Ray"""

KEPT = """
Everything is still up
    UI:      {ui}
    shell:   export PREFECT_API_URL={ui}/api PREFECT_HOME={home}
             .venv/bin/prefect-ray-worker status --pool {pool}
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
        say(KEPT.format(ui=up.ui_url, state=STATE, home=os.environ["PREFECT_HOME"], pool=POOL))
    else:
        step("Stopping the worker, its Ray and the server")
        up.stop()
        say(NEXT)
    say(f"\nIt took {time.monotonic() - began:.0f} s.")
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
