"""`Target`: the cluster to examine and its job variables, from what the user named."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_HOME

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.doctor.work_pool import (
    default_template,
    open_prefect,
    read_ray_pool,
)
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.settings import RayWorkerSettings
from prefect_ray_worker.shared.ids import submission_id

_WITHOUT_PREFECT = "name only the address of the cluster, http://<head>:8265"
_OF_ADDRESSES = "An address begins with http:// or https://."
_NOWHERE = "http://127.0.0.1:9/api"


@dataclass(frozen=True)
class Target:
    """What is examined.

    Attributes:
        configuration: The job configuration of a run there.
        connection: How to reach the cluster.
        pool: The work pool that was named, if one was.
    """

    configuration: RayJobConfiguration
    connection: Connection
    pool: str | None = None

    def __str__(self) -> str:
        pool = f", the cluster of work pool {self.pool!r}" if self.pool else ""
        return f"{self.connection.address}{pool}"


@dataclass(frozen=True)
class KubeRayTarget:
    """Clusters that KubeRay makes for runs: there is none to examine yet.

    Attributes:
        asked: The job variable.
        pool: The work pool that was named, if one was.
    """

    asked: KubeRay
    pool: str | None = None

    def __str__(self) -> str:
        of = f"a run of work pool {self.pool!r}" if self.pool else "a run"
        return f"a cluster that KubeRay makes for {of}"


@dataclass(frozen=True)
class SourceTarget:
    """Clusters that a source of another package makes for runs: there is none to examine yet.

    Attributes:
        configuration: The job configuration of a run.
        pool: The work pool that was named, if one was.
    """

    configuration: RayJobConfiguration
    pool: str | None = None

    def __str__(self) -> str:
        of = f"a run of work pool {self.pool!r}" if self.pool else "a run"
        type_ = (self.configuration.cluster_source or {}).get("type")
        return f"a cluster that the source {type_!r} makes for {of}"


async def find_target(
    named: str | None, job_variables: Mapping[str, Any], settings: RayWorkerSettings
) -> Target | KubeRayTarget | SourceTarget:
    """Return what to examine.

    Args:
        named: The address of a dashboard, the name of a work pool, or None for the cluster that
            the worker's settings name.
        job_variables: Override the pool's, as a deployment would.
        settings: Those that a worker would have here.

    Raises:
        InvalidConfiguration: No such cluster exists; the message says what to name instead.
    """
    if named is None or "://" in named:
        # The user has named the address, as a worker's setting does: it may have our token.
        address = named or settings.address
        template = default_template()
        if not _refers_to_prefect(job_variables):
            # Never opened and never asked. Without a client Prefect would make one and, where
            # PREFECT_API_URL is not set, start a server for it (3.8.8).
            unused = PrefectClient(_NOWHERE)
            return await _target(template, job_variables, address, client=unused, pool=None)
        async with open_prefect(named or "the job variables", _WITHOUT_PREFECT) as client:
            return await _target(template, job_variables, address, client=client, pool=None)
    async with open_prefect(f"work pool {named!r}", _WITHOUT_PREFECT) as client:
        try:
            pool = await read_ray_pool(named, client)
        except InvalidConfiguration as exc:
            raise InvalidConfiguration(f"{exc} {_OF_ADDRESSES}") from None
        template = pool.base_job_template or default_template()
        return await _target(template, job_variables, settings.address, client=client, pool=named)


def _refers_to_prefect(job_variables: Mapping[str, Any]) -> bool:
    """Return whether a value refers to a block or a variable in Prefect."""
    written = json.dumps(job_variables)
    return "$ref" in written or "{{" in written


async def _target(
    template: dict[str, Any],
    job_variables: Mapping[str, Any],
    address: str | None,
    *,
    client: PrefectClient,
    pool: str | None,
) -> Target | KubeRayTarget | SourceTarget:
    configuration = await RayJobConfiguration.from_template_and_values(
        template, dict(job_variables), client
    )
    _refuse_what_runs_are_refused(configuration)
    if configuration.kuberay is not None:
        return KubeRayTarget(configuration.kuberay, pool)
    if configuration.cluster_source is not None:
        return SourceTarget(configuration, pool)
    sources = ClusterSources.of_worker(PREFECT_HOME.value(), address)
    cluster = await sources.find(configuration)
    if cluster is None:
        raise InvalidConfiguration(
            "No cluster is named, and no worker with this PREFECT_HOME "
            f"({PREFECT_HOME.value()}) has started one on this machine. Name the address "
            "http://<head>:8265 or a work pool that has one, or set "
            "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS."
        )
    local = await _local_ray() if configuration.cluster is None else None
    if local is not None and local.address == cluster.connection.address:
        # The address is from a worker's log. Only the worker's own files have the token for it.
        return Target(configuration, local, pool)
    return Target(configuration, cluster.connection, pool)


def _refuse_what_runs_are_refused(configuration: RayJobConfiguration) -> None:
    """Build the job of a run that does not exist, and discard it.

    The job of the probe has a command, so it is not refused what our driver cannot do. For
    clusters that are made for runs there is no probe at all.

    Raises:
        InvalidConfiguration: No run of a deployment can have these job variables.
    """
    # A run without a deployment would be refused in an image, where our driver is not.
    run = FlowRun(flow_id=uuid4(), deployment_id=uuid4())
    configuration = configuration.model_copy(deep=True)
    configuration.prepare_for_flow_run(run)
    configuration.submission_request(submission_id(run.id, uuid4()))


async def _local_ray() -> Connection | None:
    """Return the Ray that a worker of this Prefect home started, if it still runs."""
    sources = ClusterSources.of_worker(PREFECT_HOME.value(), None)
    cluster = await sources.find(RayJobConfiguration())
    return None if cluster is None else cluster.connection
