"""Tasks that several tests submit."""

import asyncio
import os
import time
from typing import Any

from prefect import flow, task

from prefect_ray_worker import RayTaskRunner


@task
def add(x: int, y: int = 1) -> int:
    return x + y


@task
async def add_async(x: int) -> int:
    return x + 1


@task
def fail() -> None:
    raise ValueError("no luck")


@task
def pid() -> int:
    return os.getpid()


def in_flow(runner: RayTaskRunner, body: Any, **options: Any) -> Any:
    """Run a function as the body of a flow with a runner."""

    @flow(task_runner=runner, name="tested", **options)
    def the_flow() -> Any:
        return body()

    return the_flow()


@task
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@task
def type_name(value: Any) -> str:
    return type(value).__name__


@task
async def sleep_async(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
def length(value: bytes) -> int:
    return len(value)
