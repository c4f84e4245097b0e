"""A flow whose tasks keep their results; where, the deployment says and not the code."""

from prefect import flow, task
from prefect.cache_policies import INPUTS

from prefect_ray_worker import RayTaskRunner


@task(cache_policy=INPUTS, persist_result=True)
def features(day: int) -> list[int]:
    """Stand for what takes long, and is the same in every run."""
    print(f"Computing day {day}")
    return [day * hour for hour in range(24)]


@flow(task_runner=RayTaskRunner(), persist_result=True, log_prints=True)
def daily(days: int = 3) -> int:
    """Sum up the features of some days."""
    return sum(sum(found) for found in features.map(range(days)).result())
