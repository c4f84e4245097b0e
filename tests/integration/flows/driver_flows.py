"""Flows for the tests of the driver: each says in a folder what became of it.

`<folder>/pids` lists the processes of a run, `<folder>/<hook>` has a line for every run of a hook.
"""

import asyncio
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.flow_runs import suspend_flow_run
from prefect.task_runners import ThreadPoolTaskRunner

FOREVER = 300


def note(folder: str, name: str, text: object = "") -> None:
    with (Path(folder) / name).open("a") as file:
        file.write(f"{text}\n")


def on_cancellation(flow: Any, flow_run: Any, state: Any) -> None:
    note(flow_run.parameters["folder"], "on_cancellation", state.name)


async def on_cancellation_async(flow: Any, flow_run: Any, state: Any) -> None:
    await asyncio.sleep(0.01)
    note(flow_run.parameters["folder"], "on_cancellation_async", state.name)


def on_crashed(flow: Any, flow_run: Any, state: Any) -> None:
    note(flow_run.parameters["folder"], "on_crashed", state.message)


CANCELLATION: dict[str, Any] = {"on_cancellation": [on_cancellation, on_cancellation_async]}
CRASHED: dict[str, Any] = {"on_crashed": [on_crashed]}


def on_failure(flow: Any, flow_run: Any, state: Any) -> None:
    note(flow_run.parameters["folder"], "on_failure", state.name)


def on_completion(flow: Any, flow_run: Any, state: Any) -> None:
    note(flow_run.parameters["folder"], "on_completion", state.name)


ALL_HOOKS: dict[str, Any] = {
    "on_cancellation": [on_cancellation],
    "on_crashed": [on_crashed],
    "on_failure": [on_failure],
    "on_completion": [on_completion],
}


def loop() -> None:
    for _ in range(10 * FOREVER):
        time.sleep(0.1)


@flow(**CANCELLATION, **CRASHED)
def loops(folder: str) -> None:
    note(folder, "pids", os.getpid())
    loop()


@flow(**CANCELLATION)
def blocks_in_a_socket(folder: str) -> None:
    ours, _theirs = socket.socketpair()
    note(folder, "pids", os.getpid())
    ours.recv(1)


@flow(**CANCELLATION)
def waits_for_a_program(folder: str) -> None:
    note(folder, "pids", os.getpid())
    subprocess.run(["sleep", str(FOREVER)], check=True)


@flow(**CANCELLATION, **CRASHED)
async def sleeps_async(folder: str) -> None:
    note(folder, "pids", os.getpid())
    await asyncio.sleep(FOREVER)


@flow(**CANCELLATION)
async def blocks_its_event_loop(folder: str) -> None:
    note(folder, "pids", os.getpid())
    time.sleep(FOREVER)  # noqa: ASYNC251


@flow
def inner(folder: str) -> None:
    note(folder, "pids", os.getpid())
    loop()


@flow(**CANCELLATION)
def has_a_subflow(folder: str) -> None:
    inner(folder)


@flow(**CANCELLATION)
def called_ray_init(folder: str) -> None:
    import ray

    ray.init()

    @ray.remote(num_cpus=0)
    def sleeps() -> None:
        time.sleep(FOREVER)

    note(folder, "pids", os.getpid())
    ray.get(sleeps.remote())


@task
def loops_in_a_thread(folder: str) -> None:
    note(folder, "pids", os.getpid())
    loop()


@flow(task_runner=ThreadPoolTaskRunner(max_workers=2), **CANCELLATION)
def has_tasks_in_threads(folder: str) -> None:
    for future in [loops_in_a_thread.submit(folder) for _ in range(3)]:
        future.wait()


@flow(**CANCELLATION)
def ignores_everything(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(folder, "pids", os.getpid())
    while True:
        try:
            time.sleep(FOREVER)
        except BaseException:
            note(folder, "ignored")


@flow(**CANCELLATION)
def forks_and_terminates(folder: str) -> str:
    """Fork as multiprocessing does by default, and end the child the usual way."""
    import multiprocessing

    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(FOREVER,))
    child.start()
    time.sleep(0.5)
    child.terminate()
    child.join(10)
    note(folder, "exitcode", child.exitcode)
    if child.is_alive():
        child.kill()
    return "done"


@flow(**CRASHED)
def starts_programs(folder: str) -> None:
    """Start one program as usual, and one in a session of its own."""
    same = subprocess.Popen(["sleep", str(FOREVER)])
    own = subprocess.Popen(["sleep", str(FOREVER)], start_new_session=True)
    (Path(folder) / "own-session").write_text(str(own.pid))
    note(folder, "pids", f"{os.getpid()}\n{same.pid}")
    loop()


@flow(**CRASHED)
def dies(folder: str, how: str) -> None:
    subprocess.Popen(["sleep", str(FOREVER)], start_new_session=True)
    match how:
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "SIGSEGV":
            ctypes.string_at(0)
        case _:
            os._exit(int(how))


@flow(log_prints=True)
def prints(folder: str) -> None:
    note(folder, "ran", os.getpid())
    print("printed, and logged")


@flow
def runs_for(folder: str, seconds: float = 3) -> str:
    note(folder, "ran", os.getpid())
    time.sleep(seconds)
    return "done"


@flow
def waits_for_permission(folder: str) -> str:
    note(folder, "ran", os.getpid())
    deadline = time.monotonic() + FOREVER
    while time.monotonic() < deadline and not (Path(folder) / "go").exists():
        time.sleep(0.1)
    return "done"


@flow(retries=1)
def succeeds_at_second(folder: str) -> str:
    note(folder, "ran", os.getpid())
    if len((Path(folder) / "ran").read_text().split()) == 1:
        raise RuntimeError("the first try fails")
    return "second"


@flow
def suspends_itself(folder: str) -> str:
    note(folder, "ran", os.getpid())
    if len((Path(folder) / "ran").read_text().split()) == 1:
        suspend_flow_run(timeout=120)
    return "resumed"


@flow(persist_result=True)
def persists(folder: str, left: int, right: int) -> int:
    note(folder, "ran", os.getpid())
    return left + right


@flow
def generates(folder: str) -> Generator[int, None, None]:
    for number in range(3):
        note(folder, "ran", number)
        yield number


@flow
async def generates_async(folder: str) -> AsyncGenerator[int, None]:
    for number in range(3):
        note(folder, "ran", number)
        yield number


@flow
async def runs_async(folder: str) -> str:
    await asyncio.sleep(0.01)
    note(folder, "ran", os.getpid())
    return "async"


@flow
def runs_a_remote_task(folder: str) -> int:
    import ray

    ray.init()

    @ray.remote(num_cpus=0)
    def square(number: int) -> int:
        return number * number

    answer = ray.get(square.remote(7))
    note(folder, "ran", answer)
    return answer


@flow
def shows_environment(folder: str, names: list[str]) -> None:
    for name in names:
        note(folder, "environment", f"{name}={os.environ.get(name)}")
    get_run_logger().info("environment noted")


@flow(retries=1, retry_delay_seconds=FOREVER)
def retries_in_a_while(folder: str) -> None:
    note(folder, "ran", os.getpid())
    raise RuntimeError("the first try fails")


@flow(**CRASHED)
def inner_with_tasks(folder: str) -> None:
    future = loops_in_a_thread.submit(folder)
    future.wait()


@flow(**ALL_HOOKS)
def has_children(folder: str) -> None:
    """Run a subflow that waits for a task."""
    inner_with_tasks(folder)


@flow(**CRASHED)
async def inner_async(folder: str) -> None:
    note(folder, "pids", os.getpid())
    await asyncio.sleep(FOREVER)


@flow(**ALL_HOOKS)
async def has_an_async_child(folder: str) -> None:
    await inner_async(folder)


@flow(**ALL_HOOKS)
def ends_when_permitted(folder: str) -> str:
    return waits_for_permission.fn(folder)


@flow(retries=1, retry_delay_seconds=3, **ALL_HOOKS)
def retries_soon(folder: str) -> None:
    note(folder, "ran", os.getpid())
    raise RuntimeError("every try fails")


def completes_slowly(flow: Any, flow_run: Any, state: Any) -> None:
    note(flow_run.parameters["folder"], "on_completion", "begun")
    time.sleep(15)
    note(flow_run.parameters["folder"], "on_completion", "ended")


@flow(on_completion=[completes_slowly])
def has_a_slow_hook(folder: str) -> None:
    note(folder, "ran", os.getpid())


@flow
def shows_itself(folder: str, name: str) -> None:
    """Note what a flow can see of its process, and leave as much behind in it as it can."""
    seen = {
        "environment": dict(os.environ),
        "shown": Path("/proc/self/environ").read_text() + Path("/proc/self/cmdline").read_text(),
        "arguments": sys.argv[1:],
        "folder": str(Path.cwd()),
        "modules": sorted(sys.modules),
        "files": [
            str(path.resolve())
            for path in sorted(Path("/proc/self/fd").iterdir())
            if path.exists() and int(path.name) > 2
        ],
        "mask": oct(os.umask(0o022)),
        "random": random.random(),
        "left": getattr(sys, "left_by", None),
    }
    sys.left_by = name  # type: ignore[attr-defined]
    sys.modules["left_by"] = sys
    os.environ["LEFT_BY"] = name
    note(folder, "pids", os.getpid())
    (Path(folder) / "seen").write_text(json.dumps(seen))
