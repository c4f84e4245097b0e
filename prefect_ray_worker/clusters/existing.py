"""`ExistingClusters`: clusters that run already, by the address of their dashboard."""

import platform

import anyio

from prefect_ray_worker.clusters.source import Cluster, ClusterPlan, PoolView, StartProgress, Tell
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.secrets import without_userinfo
from prefect_ray_worker.errors import RayWorkerError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection, normalize_address
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.shared.ids import ClusterRef
from prefect_ray_worker.shared.loopback import is_loopback_url
from prefect_ray_worker.shared.resources import nodes_in_words

ADDRESS_SETTING = "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS"
# A worker that starts waits for the answer.
_GREETING_SECONDS = 5.0


class ExistingClusters:
    """The cluster that the job variable `address` names, or the block `cluster`, or the setting.

    Ray's own `RAY_ADDRESS` is never read: a worker on a Ray node would send its runs elsewhere.

    Args:
        default_address: Value of `PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS`.

    Raises:
        InvalidConfiguration: The setting is no address.
    """

    def __init__(self, default_address: str | None) -> None:
        self._default = (
            Connection(
                normalize_address(default_address, variable=ADDRESS_SETTING),
                TokenSource(environment=True),
            )
            if default_address
            else None
        )

    async def plan(
        self,
        configuration: RayJobConfiguration,
        job_id: str | None,
        recorded: ClusterRef | None = None,
    ) -> ClusterPlan | None:
        """Return the cluster that the run or the setting names, or None."""
        connection = configuration.connection()
        if self._default is not None:
            # The run may name the same address; the worker's token goes to no other. Headers of a
            # run's own (`Host`) can lead elsewhere, and without `verify` anyone can listen.
            connection = connection or self._default
            is_ours = connection == Connection(self._default.address)
            connection = connection.with_token_of_environment(is_ours)
        return None if connection is None else ClusterPlan(cluster_at(connection))

    async def acquire(self, plan: ClusterPlan, progress: StartProgress) -> Cluster:
        """Return the planned cluster; it runs already."""
        if plan.cluster is None:
            raise ValueError("This plan was made by another source.")
        return plan.cluster

    async def look(self, plan: ClusterPlan) -> Cluster | None:
        """Return the planned cluster."""
        return plan.cluster

    async def why_gone(self, ref: ClusterRef) -> str | None:
        """Return None: only the cluster itself could tell, and it does not answer."""

    async def release(self, ref: ClusterRef, *, failed: bool) -> str | None:
        """Do nothing: somebody else starts and stops these clusters."""

    async def take_over(self, tell: Tell) -> None:
        """Do nothing: somebody else starts and stops these clusters."""

    async def sweep(
        self, view: PoolView, pool_configuration: RayJobConfiguration | None, tell: Tell
    ) -> None:
        """Do nothing: somebody else starts and stops these clusters."""

    async def close(self, tell: Tell, ended: frozenset[str]) -> None:
        """Do nothing: somebody else starts and stops these clusters."""


async def greeting_of(connection: Connection) -> str:
    """Return which Ray a cluster runs, with how many nodes, or why it cannot be used; a sentence.

    Args:
        connection: To the cluster of all runs that name none.
    """
    address = connection.address
    try:
        with anyio.fail_after(_GREETING_SECONDS):
            async with JobsClient(connection) as ray:
                version = (await ray.version()).ray_version
                nodes = nodes_in_words(len((await ray.resources()).nodes))
    except TimeoutError:
        return f"The Ray cluster at {address} has not answered within {_GREETING_SECONDS:g} s."
    except RayWorkerError as exc:  # also if the `ca_file` of its block is not on this machine
        return f"The Ray cluster at {address} cannot be used now: {exc}"
    return f"Flow runs go to Ray {version} at {address}, {nodes}, unless they name another."


def cluster_at(connection: Connection) -> Cluster:
    """Return the cluster behind an address; one on loopback exists for this machine only."""
    only_here = platform.node() if connection.is_loopback else None
    return Cluster(ClusterRef.of_address(connection.address), connection, only_here)


def warn_of_local_api(cluster: Cluster, api_url: str | None, tell: Tell) -> None:
    """Warn if the cluster would look for the Prefect API on its own nodes."""
    if api_url and is_loopback_url(api_url) and not cluster.connection.is_loopback:
        tell(
            f"PREFECT_API_URL is {without_userinfo(api_url)}: on the nodes of "
            f"{cluster.ref} that is the node itself. If the run stays Pending, set "
            "env.PREFECT_API_URL to an address that the cluster can reach."
        )
