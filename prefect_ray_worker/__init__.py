"""Run Prefect 3 deployments inside Ray clusters: every flow run becomes a Ray Job.

The floor plan, in the order in which a flow run walks through it:

    worker side:   configuration -> shipping -> submission -> watching -> outcome -> settlement
    cluster side:  driver: claim -> prepare -> run -> report

    attempts walks that way, recovery finds the runs that nobody walks with, identity names things,
    diagnosis says on both sides why a run has no result, secrets_policy keeps secrets out of jobs,
    jobs_api talks to Ray, cancellation stops jobs, local_cluster runs a Ray on this machine, worker
    is what Prefect calls.

The public names below are imported on first use, so that `import prefect_ray_worker` costs
nothing in a job that needs only one of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_ray_worker._version import __version__ as __version__
    from prefect_ray_worker.blocks import RayCluster as RayCluster
    from prefect_ray_worker.worker import RayWorker as RayWorker

__all__ = ["RayCluster", "RayWorker", "__version__"]

_HOMES = {
    "RayCluster": "prefect_ray_worker.blocks",
    "RayWorker": "prefect_ray_worker.worker",
    "__version__": "prefect_ray_worker._version",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
