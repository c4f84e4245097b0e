"""The flow of the chaos suite: it leaves a mark for all that it does, and waits to be let go."""

import os
import time
from pathlib import Path
from typing import Any

from prefect import flow, task

LONGEST_SECONDS = 300


def note(folder: str, name: str, text: object) -> None:
    with (Path(folder) / name).open("a") as file:
        file.write(f"{text}\n")


def wait_for(path: Path) -> None:
    until = time.monotonic() + LONGEST_SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)


def hook(name: str, flow_run: Any, state: Any) -> None:
    folder = flow_run.parameters["folder"]
    note(folder, name, state.name)
    if (Path(folder) / "hold-hooks").exists():
        wait_for(Path(folder) / "go-hooks")
    print(f"{name} is over")
    note(folder, "over", name)


def on_cancellation(flow: Any, flow_run: Any, state: Any) -> None:
    hook("on_cancellation", flow_run, state)


def on_crashed(flow: Any, flow_run: Any, state: Any) -> None:
    hook("on_crashed", flow_run, state)


def on_completion(flow: Any, flow_run: Any, state: Any) -> None:
    hook("on_completion", flow_run, state)


@task
def waits(folder: str) -> None:
    """Be what a dead driver leaves behind."""
    wait_for(Path(folder) / "go")


@flow(on_cancellation=[on_cancellation], on_crashed=[on_crashed], on_completion=[on_completion])
def holds(folder: str) -> None:
    note(folder, "executions", os.getpid())
    task_run = waits.submit(folder)
    wait_for(Path(folder) / "go")
    task_run.result()
    print("the flow returns")
    note(folder, "returns", os.getpid())
