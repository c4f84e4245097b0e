"""`ClusterSeen`: a cluster of a work pool's runs, and whether it answers from this machine."""

from collections.abc import Mapping
from dataclasses import dataclass

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import WorkPool
from prefect.settings import PREFECT_HOME

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import JobsApiError, RayWorkerError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.settings import worker_settings
from prefect_ray_worker.shared.ids import ClusterRef, run_in

# A cluster that is fine answers in milliseconds.
_ANSWER_SECONDS = 3.0
# Longer: the credentials for Kubernetes can come from a command that takes seconds.
_FIND_SECONDS = 10.0
_NOT_NAMED = "Not asked: neither the work pool nor this machine's settings name it."
_NOT_MADE = "Not asked: it is not there yet, or the work pool's defaults do not lead to it."


@dataclass(frozen=True)
class ClusterSeen:
    """A cluster that runs of the pool use, or would use.

    Attributes:
        cluster: Its address, or its kind and name.
        answers: Whether it does; None if it was not asked.
        says: Which Ray it has, or why it was not asked or does not answer.
        runs: How many of the listed runs have a job there, or are to get one.
    """

    cluster: str
    answers: bool | None
    says: str
    runs: int


async def seen_clusters(
    client: PrefectClient, pool: WorkPool, jobs: Mapping[ClusterRef, list[str]]
) -> tuple[ClusterSeen, ...]:
    """Return the clusters of a pool's runs, and the pool's own; ask each whether it answers.

    Args:
        client: An open client.
        pool: The pool, just read.
        jobs: For each cluster of a run, the jobs that it has or is to get.
    """
    configuration = await _configuration(client, pool)
    sources = ClusterSources.of_worker(PREFECT_HOME.value(), worker_settings().address)
    seen: list[ClusterSeen | None] = [None] * (len(jobs) + 1)

    async def see(index: int, ref: ClusterRef, of: list[str]) -> None:
        seen[index] = await _seen(sources, ref, of, configuration)

    async def see_own() -> None:
        own = await _own(sources, configuration)
        if own is not None and own.ref not in jobs:
            seen[-1] = await _look(own.ref, own, 0)

    try:
        async with anyio.create_task_group() as tasks:
            for index, (ref, of) in enumerate(jobs.items()):
                tasks.start_soon(see, index, ref, of)
            tasks.start_soon(see_own)
    finally:
        await sources.close(lambda _: None)
    return tuple(one for one in seen if one is not None)


async def _configuration(client: PrefectClient, pool: WorkPool) -> RayJobConfiguration | None:
    """Return the configuration of a run which sets nothing; None if there is none."""
    try:
        return await RayJobConfiguration.of_pool(pool, client)
    except Exception:  # noqa: BLE001 (a template can be wrong in many ways; the doctor says which)
        return None


async def _seen(
    sources: ClusterSources,
    ref: ClusterRef,
    jobs: list[str],
    configuration: RayJobConfiguration | None,
) -> ClusterSeen:
    # A pid or a label that another tool wrote names no job that a cluster could be made for.
    job = next((job for job in jobs if run_in(job) is not None), None)
    cluster, trouble = None, ""
    try:
        with anyio.fail_after(_FIND_SECONDS):
            cluster = await sources.look_for_named(ref, job, configuration)
    except TimeoutError:
        trouble = f"what made it does not answer within {_FIND_SECONDS:g} s from this machine."
    except RayWorkerError as exc:
        trouble = str(exc)
    # What is wrong with the pool's clusters is not the reason for a cluster by address.
    if trouble and ref != ClusterRef.of_address(ref.name):
        return ClusterSeen(str(ref), None, f"Not asked: {trouble}", len(jobs))
    return await _look(ref, cluster, len(jobs))


async def _own(
    sources: ClusterSources, configuration: RayJobConfiguration | None
) -> Cluster | None:
    if configuration is None or configuration.kuberay is not None:
        return None
    try:
        with anyio.fail_after(_FIND_SECONDS):
            return await sources.find(configuration)
    except (RayWorkerError, TimeoutError):
        return None


async def _look(ref: ClusterRef, cluster: Cluster | None, runs: int) -> ClusterSeen:
    if cluster is None:
        is_made = ref != ClusterRef.of_address(ref.name)
        return ClusterSeen(str(ref), None, _NOT_MADE if is_made else _NOT_NAMED, runs)
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            async with JobsClient(cluster.connection) as client:
                version = await client.version()
    except TimeoutError:
        says = f"It does not answer within {_ANSWER_SECONDS:g} s from this machine."
        return ClusterSeen(str(ref), False, says, runs)
    except JobsApiError as exc:
        return ClusterSeen(str(ref), False, str(exc), runs)
    except RayWorkerError as exc:  # a file of the connection is not on this machine, for example
        return ClusterSeen(str(ref), None, f"Not asked: {exc}", runs)
    return ClusterSeen(str(ref), True, f"Ray {version.ray_version}", runs)
