"""The flow of the chaos suite: it leaves a mark for all that it does, and waits to be let go."""

import os
import time
from pathlib import Path
from typing import Any

from prefect import flow

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


def on_cancellation(flow: Any, flow_run: Any, state: Any) -> None:
    hook("on_cancellation", flow_run, state)


def on_crashed(flow: Any, flow_run: Any, state: Any) -> None:
    hook("on_crashed", flow_run, state)


def on_completion(flow: Any, flow_run: Any, state: Any) -> None:
    hook("on_completion", flow_run, state)


@flow(on_cancellation=[on_cancellation], on_crashed=[on_crashed], on_completion=[on_completion])
def holds(folder: str) -> None:
    note(folder, "executions", os.getpid())
    wait_for(Path(folder) / "go")
    note(folder, "returns", os.getpid())
