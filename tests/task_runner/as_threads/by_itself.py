"""A script that connects to Ray by itself, is `__main__`, and ends Ray under its flow's tasks."""

import functools
import json
import time
from contextlib import suppress
from random import random
from typing import Any

import ray
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker import RayTaskRunner

ray.init(log_to_driver=False)
FOUND: dict[str, Any] = {}


@functools.lru_cache
def costly(x: int) -> list[int]:
    return [x]


@task
def is_kept() -> Any:
    return costly(1) is costly(1), costly(2)


@task
def draws() -> float:
    return random()


@task
def imports_beside() -> Any:
    import beside

    return beside.CHOSEN


@task
def sleeps() -> None:
    time.sleep(100)


@flow(task_runner=RayTaskRunner(init_kwargs={"num_cpus": 17}))
def ends_ray() -> None:
    FOUND["cached"] = is_kept.submit().result()
    FOUND["draws what the flow draws"] = draws.submit().result() == random()
    FOUND["beside"] = str(imports_beside.submit().result(raise_on_failure=False))
    in_flight = sleeps.submit()
    in_flight.wait(timeout=1)
    ray.shutdown()
    in_flight.wait(timeout=30)
    FOUND["in flight"] = in_flight.state.name
    FOUND["in the API"] = state_in_the_api(in_flight.task_run_id)
    try:
        sleeps.submit()
    except Exception as exc:
        FOUND["submit"] = type(exc).__name__


def state_in_the_api(task_run_id: Any) -> str | None:
    with get_client(sync_client=True) as client:
        for _ in range(150):
            with suppress(ObjectNotFound):  # its events are on their way
                state = client.read_task_run(task_run_id).state
                if state is not None and state.is_final():
                    return state.name
            time.sleep(0.2)
    return None


if __name__ == "__main__":
    ends_ray()
    print("FOUND", json.dumps(FOUND))
