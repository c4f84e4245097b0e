"""Warming: processes of the cluster import Prefect while the driver still prepares its first task.

A fresh process of Ray's needs a second of CPU for that, which the first tasks would wait for.
"""

from prefect.logging import get_logger

_log = get_logger("task_runner.ray")

# More would be a burden for a cluster that others use, for a flow that may submit one task.
_MOST_PROCESSES = 16


def warm_up() -> None:
    """Have Ray start and warm a process on each CPU that is free now, and do not wait for it."""
    import ray

    try:
        free = int(ray.available_resources().get("CPU", 0))
        warm = ray.remote(num_cpus=1, max_retries=0, num_returns=0)(import_what_tasks_need)
        for _ in range(min(free, _MOST_PROCESSES)):
            warm.options(name="RayTaskRunner: import Prefect").remote()
    except Exception:
        _log.debug("Processes are not warmed up", exc_info=True)


def import_what_tasks_need() -> None:
    """Import, in a process of the cluster, what running a task imports."""
    import prefect_ray_worker.task_runner.execution  # noqa: F401  # pyright: ignore[reportUnusedImport]
