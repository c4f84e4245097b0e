"""A flow that goes on importing prefect-ray."""

from pathlib import Path

from prefect import flow, task
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options


@task
def square(number: int) -> int:
    return number * number


@flow(task_runner=RayTaskRunner())
def fans_out_with_theirs(folder: str) -> None:
    with remote_options(num_cpus=0.5):
        futures = [square.submit(number) for number in range(4)]
    total = sum(future.result() for future in futures)
    (Path(folder) / "total").write_text(str(total))
