"""`ray_job`: binds a flow to a `ray` work pool, so that calling it runs it in the cluster.

It imports nothing heavy and checks nothing, as the flow's module is imported in the cluster too.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypedDict, TypeVar, Unpack

from prefect.flows import Flow

from prefect_ray_worker.adhoc.flow import CallTerms, RayBoundFlow

if TYPE_CHECKING:
    from prefect_ray_worker.config.block import RayCluster

P = ParamSpec("P")
R = TypeVar("R")

Dependencies = Literal["cluster", "lock", "freeze"] | Sequence[str]


class RayJobVariables(TypedDict, total=False):
    """The job variables of a `ray` work pool, as keyword arguments."""

    address: str
    cluster: "RayCluster"
    kuberay: Mapping[str, Any]
    cluster_source: Mapping[str, Any]
    env: Mapping[str, str | int | float | bool | None]
    runtime_env: Mapping[str, Any]
    entrypoint_num_cpus: float
    entrypoint_num_gpus: float
    entrypoint_memory: str | int
    entrypoint_resources: Mapping[str, float]
    entrypoint_label_selector: Mapping[str, str]
    start_timeout_seconds: int
    run_timeout_seconds: int
    stop_grace_seconds: int
    forward_logs: bool
    infrastructure_retries: int
    delete_job_after_seconds: int
    warm_driver_seconds: int
    name: str
    labels: Mapping[str, str]
    metadata: Mapping[str, str]
    command: str


def ray_job(
    work_pool: str,
    include_files: Sequence[str] | None = None,
    *,
    include_files_base_dir: Path | str | None = None,
    dependencies: Dependencies = "cluster",
    stream_logs: bool = True,
    **job_variables: Unpack[RayJobVariables],
) -> Callable[[Flow[P, R]], RayBoundFlow[P, R]]:
    """Run a flow as a Ray Job of a work pool whenever it is called, without a deployment.

    The flow, its local modules and its arguments travel in the flow run. A call prints the run's
    logs and returns the flow's value; Ctrl-C cancels the run.

    Args:
        work_pool: Name of a work pool of type `ray`. One of its workers has to be online.
        include_files: Files to send with the flow: paths, folders or globs; `!pattern` leaves files
            out.
        include_files_base_dir: Folder that the paths are relative to. By default the flow's
            folder, in a notebook the working directory.
        dependencies: Packages that the cluster installs for the run. `cluster`: none. `lock`: the
            content of `uv.lock`. `freeze`: the packages that are installed here. Or a list of
            requirements.
        stream_logs: Whether a call prints the logs of the run.
        **job_variables: Job variables of the work pool.

    Raises:
        TypeError: `launcher` is given. Prefect's own decorators accept it; `ray_job` does not.

    Example:
        ```python
        from prefect import flow
        from prefect_ray_worker import ray_job

        @ray_job(work_pool="ray-pool", entrypoint_num_cpus=1)
        @flow
        def train(rows: int) -> float:
            return rows / 2

        train(10)
        ```
    """
    if "launcher" in job_variables:
        raise TypeError(
            "ray_job takes no launcher: the flow runs with the Python of its cluster. To choose "
            "the packages there, set dependencies or runtime_env."
        )
    terms = CallTerms(
        include_files=tuple(include_files or ()),
        include_files_base_dir=include_files_base_dir,
        dependencies=dependencies if isinstance(dependencies, str) else tuple(dependencies),
        stream_logs=stream_logs,
    )

    def bind(flow: Flow[P, R]) -> RayBoundFlow[P, R]:
        return RayBoundFlow(flow, work_pool, dict(job_variables), terms)

    return bind
