"""A module beside the flow's file."""

import threading

from prefect import task

LOCK = threading.Lock()
CHOSEN = "as loaded"


class Beside: ...


@task
def with_lock(x: int) -> int:
    with LOCK:
        return x


@task
def chosen() -> str:
    return CHOSEN
