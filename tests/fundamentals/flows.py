"""The flows of the tour: each shows one thing that users do."""

import os
import signal
import time
from pathlib import Path

from prefect import flow, get_run_logger, task

from prefect_ray_worker import RayTaskRunner


@flow(log_prints=True)
def greet(name: str) -> str:
    get_run_logger().info("a line of the logger")
    print(f"Hello, {name}")
    return name


@task
def square(number: int) -> int:
    get_run_logger().info("squaring %s", number)
    return number * number


@flow(task_runner=RayTaskRunner())
def sum_of_squares(count: int) -> int:
    total = sum(square.map(range(count)).result())
    get_run_logger().info("the sum is %s", total)
    return total


@flow
def fail() -> None:
    raise ValueError("the user's code raised this")


@flow
def die() -> None:
    """End as a process that ran out of memory does: at once, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


@flow
def count_until(sign: str) -> None:
    """Print a number each second until a file exists, two minutes at most."""
    for second in range(120):
        print(f"second {second}", flush=True)
        if Path(sign).exists():
            break
        time.sleep(1)
    print("the end", flush=True)
