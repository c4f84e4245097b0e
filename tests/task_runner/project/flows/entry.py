"""A flow with everything that its tasks could need from its folder."""

import threading
from pathlib import Path
from typing import Any

import sibling
from lib import shared
from prefect import flow, task

from prefect_ray_worker import RayTaskRunner, remote_options

LOCK = threading.Lock()


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
def uses_local_class(value: Local) -> Local:
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
def reads_data() -> str:
    return Path("flows/data/text.txt").read_text().strip()


@task
def submits() -> int:
    return uses_local.submit().result()


@flow(task_runner=RayTaskRunner("auto"))
def everything(resource: str) -> dict[str, Any]:
    found: dict[str, Any] = {"lock": LOCK.locked()}  # no obstacle: the flow's body stays here
    with remote_options(resources={resource: 0.01}):
        for each in (trivial, uses_local, uses_sibling, uses_package, imports_late, reads_data):
            state = each.submit(return_state=True)
            found[each.name] = state.result(raise_on_failure=False)
        nested = submits.submit(return_state=True)
        found["submits"] = nested.result(raise_on_failure=False)
        result = uses_local_class.submit(Local(1)).result()
        found["uses_local_class"] = (type(result) is Local, result.value)
    return {name: str(value) for name, value in found.items()}
