"""A flow whose tasks run all over the cluster."""

from prefect import flow, task

from prefect_ray_worker import RayTaskRunner, remote_options


@task
def rows_of(day: int) -> int:
    """Stand for what takes long on one day's data."""
    return day * 100


# Without an address: in a Ray Job it joins the cluster of the job.
@flow(task_runner=RayTaskRunner(), log_prints=True)
def nightly(days: int = 3) -> int:
    with remote_options(num_cpus=0.5):
        total = sum(rows_of.map(range(days)).result())
    print(f"{total} rows in {days} days")
    return total
