"""A flow with everything that its tasks could need from its folder."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import sibling
from lib import shared
from prefect import flow, task

from prefect_ray_worker import RayTaskRunner, remote_options

LOCK = threading.Lock()
RUNNER = RayTaskRunner("auto", ship_code="SHIP_NOTHING" not in os.environ)


class Local:
    def __init__(self, value: int) -> None:
        self.value = value


def local(value: int) -> Local:
    return Local(value)


@task
def trivial() -> str:
    return "ok"


@task
def uses_local() -> int:
    return local(7).value


@task
def uses_local_class() -> tuple[bool, int]:
    return type(echoes.fn(Local(2))) is Local, 2


@task
def echoes(value: Local) -> Local:
    return Local(value.value + 1)


@task
def uses_sibling() -> str:
    return sibling.hello()


@task
def uses_package() -> str:
    return shared.hello()


@task
def imports_late() -> str:
    import sibling as late

    return late.hello()


@task
def imports_from_the_path() -> str:
    import on_the_path

    return on_the_path.hello()


@task
def reads_data() -> str:
    return Path("flows/data/text.txt").read_text().strip()


@task
def uses_lock() -> bool:
    return LOCK.locked()


@task
def submits() -> int:
    return uses_local.submit().result()


@task
def imports_from_the_job() -> str:
    import of_the_job

    return of_the_job.hello()


def attempt(each: Any, *arguments: Any) -> str:
    try:
        return str(each.submit(*arguments).result())
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


@flow(task_runner=RUNNER)
def everything(resource: str) -> dict[str, str]:
    # Its body stays in the driver: what it refers to is no obstacle.
    assert not LOCK.locked()
    tasks = (
        *(trivial, uses_local, uses_local_class, uses_sibling, uses_package, imports_late),
        *(imports_from_the_path, reads_data, uses_lock, submits, imports_from_the_job),
    )
    with remote_options(resources={resource: 0.01}):
        found = {each.name: attempt(each) for each in tasks}
        here_and_there = echoes.submit(Local(1))
        found["a class of the script comes back as itself"] = str(
            isinstance(here_and_there.result(), Local)
        )
    return found


if __name__ == "__main__":
    print("FOUND", json.dumps([__name__, everything("far")]))
