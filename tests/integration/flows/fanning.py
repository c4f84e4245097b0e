"""Flows that fan out with RayTaskRunner, for the tests of it inside a Ray Job."""

import os
import threading
import time
from contextvars import copy_context
from pathlib import Path

from prefect import flow, get_run_logger, task, unmapped
from prefect.flow_runs import suspend_flow_run

from prefect_ray_worker import RayTaskRunner


def helper(number: int) -> int:
    return number * number


@task
def square(number: int) -> int:
    get_run_logger().info("squaring %s", number)
    return helper(number)


@task
def sleeps(folder: str) -> None:
    with (Path(folder) / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(300)


@flow(task_runner=RayTaskRunner())
def fans_out(folder: str) -> int:
    total = sum(square.map(range(10)).result())
    (Path(folder) / "total").write_text(str(total))
    return total


@flow(task_runner=RayTaskRunner())
def fans_out_for_long(folder: str) -> None:
    sleeps.map([folder, folder]).wait()


@flow(task_runner=RayTaskRunner())
def fans_out_within(folder: str, tag: str) -> None:
    for future in sleeps.with_options(tags=[tag]).map([folder]):
        future.wait()


@flow(task_runner=RayTaskRunner())
def fans_out_and_ignores_everything(folder: str, tag: str) -> None:
    """Hold slots of a tag by tasks of its own and of a subflow, and never end by itself."""
    (Path(folder) / "engine").write_text(f"{os.getpid()}\n")
    tagged = sleeps.with_options(tags=[tag])
    tagged.submit(folder)
    within = threading.Thread(target=copy_context().run, args=(fans_out_within, folder, tag))
    within.start()
    while True:
        try:
            time.sleep(300)
        except BaseException:
            (Path(folder) / "ignored").touch()


@task(persist_result=True)
def counts(folder: str, number: int) -> int:
    time.sleep(2)
    with (Path(folder) / "bodies").open("a") as file:
        file.write(f"{number}\n")
    return number


@flow(task_runner=RayTaskRunner())
def fans_out_and_suspends_itself(folder: str) -> None:
    futures = counts.map(unmapped(folder), range(3))
    began = Path(folder) / "began"
    if not began.exists():
        began.touch()
        suspend_flow_run(timeout=120)
    (Path(folder) / "total").write_text(str(sum(futures.result())))
