"""How a worker reaches a RayCluster's dashboard: by service, through the API server, or by URL."""

from contextlib import suppress

from prefect_ray_worker.clusters.kuberay.manifest import DASHBOARD_PORT, SCOPE_LABEL, SHARED
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.errors import ObjectMissing
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import RayClusterObject
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.shared.ids import ClusterRef

KIND = "kuberay"
_TOKEN_KEY = "auth_token"  # noqa: S105 (the key of a Secret, `utils/constant.go` of KubeRay 1.5)


def ref_of(
    namespace: str, name: str, uid: str | None = None, home: str | None = None
) -> ClusterRef:
    """Return the reference to a RayCluster; without a uid it is a planned one.

    Args:
        namespace: Its namespace.
        name: Its name.
        uid: Its uid.
        home: Which Kubernetes has it (`Access.home`), in a reference that is written on a run.
    """
    return ClusterRef(KIND, f"{namespace}/{name}{f'@{uid}' if uid else ''}", home)


def place_in(ref: ClusterRef) -> tuple[str, str]:
    """Return the namespace and name of the RayCluster that a reference is to."""
    namespace, _, name = ref.planned.name.partition("/")
    return namespace, name


async def reached(client: KubernetesClient, cluster: RayClusterObject, asked: KubeRay) -> Cluster:
    """Return a RayCluster with the connection to its dashboard.

    Args:
        client: Of its Kubernetes cluster.
        cluster: The RayCluster.
        asked: The job variable of a run that uses it, or of the pool.

    Raises:
        KubernetesError: The Ray token cannot be read. A Secret that is not there yet counts as
            no token.
    """
    token = TokenSource()
    if cluster.has_token:
        with suppress(ObjectMissing):
            # One for each cluster, made by KubeRay under the cluster's name, or the pool's own.
            secret = cluster.auth_secret or cluster.name
            value = await client.secret_value(cluster.namespace, secret, _TOKEN_KEY)
            token = TokenSource(literal=value)
    published = None
    if asked.address_template is not None:
        published = asked.address_template.format(
            namespace=cluster.namespace, name=cluster.name
        ).rstrip("/")
    return Cluster(
        ref_of(cluster.namespace, cluster.name, cluster.uid, client.access.home),
        _connection(client, cluster, asked, token, published),
        is_on_demand=True,
        is_for_one_run=cluster.labels.get(SCOPE_LABEL) != SHARED,
        dashboard=published,
    )


def _connection(
    client: KubernetesClient,
    cluster: RayClusterObject,
    asked: KubeRay,
    token: TokenSource,
    published: str | None,
) -> Connection:
    if published is not None:
        return Connection(published, token)
    # What KubeRay calls it (`utils/util.go`), until the operator says so itself.
    service = cluster.head_service or f"{cluster.name}-head-svc"
    is_inside = asked.access == "auto" and client.access.is_inside
    if asked.access == "service" or is_inside:
        # Not `.svc.cluster.local`: that part is the cluster administrator's choice.
        return Connection(f"http://{service}.{cluster.namespace}.svc:{DASHBOARD_PORT}", token)
    address = client.proxy_address(cluster.namespace, service)
    return Connection(address, token, gateway=client.gateway)
