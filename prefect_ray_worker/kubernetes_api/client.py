"""`KubernetesClient`: one method per request to the API server, no policy beyond a request."""

import base64
import binascii
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

import anyio.to_thread
from pydantic import BaseModel, Field

from prefect_ray_worker.errors import KubeRayMissing, KubernetesRejected, ObjectMissing
from prefect_ray_worker.kubernetes_api.answers import unusable
from prefect_ray_worker.kubernetes_api.credentials import Access, Kubeconfig
from prefect_ray_worker.kubernetes_api.gateway import KubernetesGateway
from prefect_ray_worker.kubernetes_api.http import ApiServer, selector_of
from prefect_ray_worker.kubernetes_api.models import (
    CLUSTER_LABEL,
    EventObject,
    PodObject,
    RayClusterObject,
)
from prefect_ray_worker.kubernetes_api.request import (
    RAY_API,
    ApiRequest,
    Texts,
    cluster_request,
    core_request,
    namespace_path,
    segment,
)
from prefect_ray_worker.kubernetes_api.schema import ServedFields, fields_in

_REVIEWS = "apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_MOST_OF_A_LOG = 1024 * 1024


class _DeletionAnswer(BaseModel):
    """The object, if it stays for a while, or a `Status`."""

    kind: Literal["RayCluster", "Status"]


class _SecretAnswer(BaseModel):
    data: dict[str, str] | None = Field(default=None, repr=False)


class _ReviewStatus(BaseModel):
    allowed: bool
    reason: str = ""


class _Review(BaseModel):
    status: _ReviewStatus


class _Version(BaseModel):
    git_version: str = Field(alias="gitVersion")


class KubernetesClient:
    """An asynchronous client of one Kubernetes API server, for the RayClusters of a worker.

    Every method raises a `KubernetesError` subclass that says what the answer means, or
    `InvalidConfiguration` for a name that Kubernetes cannot have. `KubernetesUnclear` is raised by
    `create_cluster`, `annotate` and `delete_cluster` only: read the object back. Opening the
    client sends nothing; it reads the credentials and raises `InvalidConfiguration` if it cannot.

    Example:
        ```python
        async with KubernetesClient() as kubernetes:
            cluster = await kubernetes.get_cluster("ray", "my-cluster")
        ```

    Args:
        kubeconfig: A block's. None: the service account of the pod, else the file `KUBECONFIG`.
    """

    def __init__(self, kubeconfig: Kubeconfig | None = None) -> None:
        self._server = ApiServer(kubeconfig)
        self._gateway: KubernetesGateway | None = None

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        self._gateway = KubernetesGateway(self._server.access)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._server.__aexit__(exc_type, exc, traceback)

    @property
    def access(self) -> Access:
        """Where the API server is, our namespace, and whether the worker runs in a pod of it."""
        return self._server.access

    @property
    def gateway(self) -> KubernetesGateway:
        """The credentials for a `Connection` whose address is a `proxy_address`."""
        if self._gateway is None:
            raise RuntimeError("Use KubernetesClient as an async context manager.")
        return self._gateway

    def proxy_address(self, namespace: str, service: str, port: str = "dashboard") -> str:
        """Return the address of a service's port, through the API server's service proxy.

        Args:
            namespace: Of the service.
            service: For a Ray dashboard `RayClusterObject.head_service`.
            port: Name or number of the port.
        """
        place = f"{namespace_path(namespace)}/services/{segment(service, what='service')}"
        return f"{self.access.server}/api/v1/{place}:{segment(port, what='port')}/proxy"

    async def version(self) -> str:
        """Return the release of the API server, such as `v1.36.2`."""
        answer = await self._server.read(ApiRequest("get", "version"), _Version)
        return answer.git_version

    async def create_cluster(self, manifest: Mapping[str, Any]) -> RayClusterObject:
        """Create a RayCluster. The server refuses fields that it does not know.

        Args:
            manifest: With `metadata.namespace` and `metadata.name`.

        Raises:
            AlreadyThere: The name is taken, perhaps by a cluster that is being deleted.
            QuotaExceeded: Not created; another try can succeed once a cluster is gone. Kubernetes
                checks the quota before the name, so a cluster of that name can be there.
            ManifestRefused: `field` names the field, if the server does.
            ObjectMissing: The namespace is missing (`resource == "namespaces"`).
            KubernetesUnclear: The cluster may be there; read it back.
        """
        return await self._create(manifest, dry_run=False)

    async def dry_run(self, manifest: Mapping[str, Any]) -> RayClusterObject:
        """Let the server check a RayCluster's manifest without storing it.

        Schema, rights, quota and admission webhooks are checked. Raises as `create_cluster`.
        """
        return await self._create(manifest, dry_run=True)

    async def get_cluster(self, namespace: str, name: str) -> RayClusterObject:
        """Return a RayCluster.

        Raises:
            ObjectMissing: There is none of that name.
        """
        return await self._server.read(cluster_request("get", namespace, name), RayClusterObject)

    async def list_clusters(
        self, namespace: str, labels: Texts | None = None, *, cached: bool = False
    ) -> list[RayClusterObject]:
        """Return the RayClusters of a namespace.

        Args:
            namespace: Where.
            labels: The labels, with their values, that a cluster must have.
            cached: True for an answer from the server's cache: cheaper, but it can be some seconds
                old and then misses what has just been created.
        """
        return await self._server.list(
            cluster_request("list", namespace),
            RayClusterObject,
            selector=selector_of(labels),
            cached=cached,
        )

    async def annotate(
        self,
        namespace: str,
        name: str,
        annotations: Mapping[str, str | None],
        *,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> RayClusterObject:
        """Set annotations of a RayCluster, and return it as it is afterwards.

        Succeeds for a cluster that is being deleted: look at `is_terminating` of the result. A
        value that is there already changes nothing, not even `resource_version`.

        Args:
            namespace: Of the cluster.
            name: Of the cluster.
            annotations: New values; None removes one.
            uid: Change only the object with this uid.
            resource_version: Change it only if nobody has changed it since this version.

        Raises:
            ObjectMissing: There is no cluster of that name.
            ObjectReplaced: It has another uid.
            Conflict: It has another version.
            KubernetesUnclear: The annotations may be set.
        """
        metadata: dict[str, Any] = {"annotations": dict(annotations)}
        if uid is not None:
            metadata["uid"] = uid
        if resource_version is not None:
            metadata["resourceVersion"] = resource_version
        request = cluster_request("patch", namespace, name, body={"metadata": metadata})
        return await self._server.read(request, RayClusterObject)

    async def delete_cluster(
        self,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> None:
        """Ask for the deletion of a RayCluster, and of its pods before it (foreground).

        Returns when the server has accepted it, which cannot be undone. The cluster is gone when
        `get_cluster` raises `ObjectMissing`.

        Args:
            namespace: Of the cluster.
            name: Of the cluster.
            uid: Delete only the object with this uid.
            resource_version: Delete it only if nobody has changed it since this version.

        Raises:
            ObjectMissing: It is gone already.
            ObjectReplaced: It has another uid.
            Conflict: It has another version.
            KubernetesUnclear: It may be under deletion.
        """
        wanted = {"uid": uid, "resourceVersion": resource_version}
        options: dict[str, Any] = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": "Foreground",
        }
        if given := {key: value for key, value in wanted.items() if value is not None}:
            options["preconditions"] = given
        # Read, so that the page of a login proxy is not taken for an accepted deletion.
        await self._server.read(
            cluster_request("delete", namespace, name, body=options), _DeletionAnswer
        )

    async def pods(
        self,
        namespace: str,
        cluster: str | None = None,
        labels: Texts | None = None,
        *,
        cached: bool = False,
    ) -> list[PodObject]:
        """Return pods of RayClusters, by label.

        Args:
            namespace: Where.
            cluster: Name of the RayCluster; None for the pods of all.
            labels: Further labels that a pod must have.
            cached: As for `list_clusters`.
        """
        wanted = dict(labels or {})
        if cluster is not None:
            wanted[CLUSTER_LABEL] = cluster
        return await self._server.list(
            core_request("list", namespace, "pods"),
            PodObject,
            selector=selector_of(wanted) or CLUSTER_LABEL,
            cached=cached,
        )

    async def events(self, namespace: str, uid: str | None = None) -> list[EventObject]:
        """Return the events about an object, or all RayClusters, oldest first; kept for an hour."""
        of_object = uid and f"uid={segment(uid, what='uid')}"
        about = f"involvedObject.{of_object or 'kind=RayCluster'}"
        request = core_request("list", namespace, "events", parameters=(("fieldSelector", about),))
        found = await self._server.list(request, EventObject)
        return sorted(found, key=lambda event: event.at.timestamp() if event.at else 0.0)

    async def pod_log(
        self,
        namespace: str,
        pod: str,
        lines: int,
        *,
        container: str | None = None,
        previous: bool = False,
    ) -> str:
        """Return the last lines of a pod's log; empty if its container has not started.

        Args:
            namespace: Of the pod.
            pod: Its name.
            lines: How many lines at most; at most 1 MiB is read.
            container: Name of the container; None if the pod has only one, or names a default.
            previous: True for the log of the container before its last restart.

        Raises:
            ObjectMissing: The pod is gone.
        """
        parameters = [("tailLines", str(lines)), ("limitBytes", str(_MOST_OF_A_LOG))]
        if container is not None:
            parameters.append(("container", container))
        if previous:
            parameters.append(("previous", "true"))
        request = core_request("get", namespace, "pods/log", pod, parameters=tuple(parameters))
        try:
            return (await self._server.ask(request)).decode("utf-8", errors="replace")
        except KubernetesRejected:
            return ""  # "container … is waiting to start", or "previous … not found"

    async def secret_value(self, namespace: str, name: str, key: str) -> str:
        """Return one value of a Secret, decoded.

        Raises:
            ObjectMissing: There is no such Secret, or it has no such key.
        """
        request = core_request("get", namespace, "secrets", name)
        answer = await self._server.read(request, _SecretAnswer)
        value = (answer.data or {}).get(key)
        if value is None:
            raise ObjectMissing(f"Kubernetes has no key {key!r} in {request.what}.")
        try:
            return base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            # `from None`: the cause quotes the value.
            raise KubernetesRejected(f"Key {key!r} of {request.what} is not text.") from None

    async def can_i(
        self,
        verb: str,
        group: str,
        resource: str,
        namespace: str,
        *,
        subresource: str = "",
        name: str = "",
    ) -> bool:
        """Return whether role-based access control allows a request. Needs no right itself.

        Args:
            verb: Such as `create`.
            group: API group: `ray.io`, or empty for the core group.
            resource: Plural, such as `rayclusters`.
            namespace: Where.
            subresource: Such as `log` for pods, `proxy` for services.
            name: Of the one object that it is about; a rule can be for certain names only.
        """
        asked = {
            "verb": verb,
            "group": group,
            "resource": resource,
            "namespace": namespace,
            "subresource": subresource,
            "name": name,
        }
        request = ApiRequest(
            "create",
            _REVIEWS,
            "selfsubjectaccessreviews.authorization.k8s.io",
            body={
                "kind": "SelfSubjectAccessReview",
                "apiVersion": "authorization.k8s.io/v1",
                "spec": {"resourceAttributes": {k: v for k, v in asked.items() if v}},
            },
            stores=False,
        )
        return (await self._server.read(request, _Review)).status.allowed

    async def served_fields(self) -> ServedFields:
        """Return the fields of RayCluster that the installed KubeRay has. Needs no right.

        Raises:
            KubeRayMissing: RayCluster is not served.
        """
        body = await self._server.ask(ApiRequest("get", f"openapi/v3/{RAY_API}"))
        try:
            found = await anyio.to_thread.run_sync(fields_in, body)
        except ValueError:
            raise unusable(self.access.server, "no OpenAPI document of ray.io/v1") from None
        if found is None:
            raise KubeRayMissing(f"{self.access.server} serves ray.io/v1 without a RayCluster.")
        return found

    async def _create(self, manifest: Mapping[str, Any], *, dry_run: bool) -> RayClusterObject:
        metadata = manifest.get("metadata") or {}
        namespace, name = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
        parameters = [("fieldValidation", "Strict")]
        if dry_run:
            parameters.append(("dryRun", "All"))
        request = cluster_request(
            "create",
            namespace,
            name,
            body=manifest,
            parameters=tuple(parameters),
            stores=not dry_run,
        )
        return await self._server.read(request, RayClusterObject)
