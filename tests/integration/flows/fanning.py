"""Flows that fan out with RayTaskRunner, for the tests of it inside a Ray Job."""

import os
import time
from pathlib import Path

from prefect import flow, get_run_logger, task

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
