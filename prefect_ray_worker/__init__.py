"""Run Prefect 3 deployments inside Ray clusters: every flow run becomes a Ray Job.

A flow run walks through these folders. Each says in its `__init__` what enters and what leaves:

    worker side:   config -> clusters -> runs (submit -> watch -> judge -> settle), logs, diagnosis
    cluster side:  driver (claim -> prepare -> run -> report), task_runner (submit -> run -> result)

`ray_api` talks to Ray, `prefect_api` to Prefect, and `shared` is what both sides know. `worker` is
what Prefect calls, `commands` has the command line, and `doctor` examines a cluster. The page
`docs/explanation/architecture.md` has the pictures, and a table "From a symptom to a file".

The public names below are imported on first use, so that `import prefect_ray_worker` costs
nothing in a job that needs only one of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_ray_worker._version import __version__ as __version__
    from prefect_ray_worker.adhoc.decorator import ray_job as ray_job
    from prefect_ray_worker.config.block import RayCluster as RayCluster
    from prefect_ray_worker.task_runner.options import remote_options as remote_options
    from prefect_ray_worker.task_runner.runner import RayTaskRunner as RayTaskRunner
    from prefect_ray_worker.worker import RayWorker as RayWorker

__all__ = [
    "RayCluster",
    "RayTaskRunner",
    "RayWorker",
    "__version__",
    "ray_job",
    "remote_options",
]

_HOMES = {
    "RayCluster": "prefect_ray_worker.config.block",
    "RayTaskRunner": "prefect_ray_worker.task_runner.runner",
    "RayWorker": "prefect_ray_worker.worker",
    "__version__": "prefect_ray_worker._version",
    "ray_job": "prefect_ray_worker.adhoc.decorator",
    "remote_options": "prefect_ray_worker.task_runner.options",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
