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
from prefect.futures import wait

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


@flow(task_runner=RayTaskRunner(init_kwargs={"num_cpus": 17}, max_in_flight=80))
def ends_ray() -> None:
    FOUND["cached"] = is_kept.submit().result()
    FOUND["draws what the flow draws"] = draws.submit().result() == random()
    FOUND["beside"] = str(imports_beside.submit().result(raise_on_failure=False))
    in_flight = sleeps.submit()
    in_flight.wait(timeout=1)
    others = [sleeps.submit() for _ in range(160)]  # half of them wait for their turn
    ray.shutdown()
    FOUND["not ended soon"] = len(wait([in_flight, *others], timeout=30).not_done)
    FOUND["states"] = sorted({future.state.name for future in (in_flight, *others)})
    FOUND["in the API"] = [state_in_the_api(f.task_run_id) for f in (in_flight, others[-1])]
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
