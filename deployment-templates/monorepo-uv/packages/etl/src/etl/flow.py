"""A flow that uses another package of the monorepo."""

from common import rows_of
from prefect import flow, task

from prefect_ray_worker import RayTaskRunner


@task
def count(day: int) -> int:
    return rows_of(day)


# Without an address: in a Ray Job it joins the cluster of the job.
@flow(task_runner=RayTaskRunner(), log_prints=True)
def etl(days: int = 3) -> int:
    total = sum(count.map(range(days)).result())
    print(f"{total} rows in {days} days")
    return total
