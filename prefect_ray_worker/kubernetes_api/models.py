"""What we read of Kubernetes objects: frozen, flat, and without what a newer release adds.

Build them in tests by field name: `RayClusterObject(name="a", namespace="b", uid="c")`.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field

CLUSTER_LABEL = "ray.io/cluster"
"""On each pod, service and Secret of a RayCluster: its name."""

NODE_TYPE_LABEL = "ray.io/node-type"
"""On each pod of a RayCluster: `head` or `worker`."""


def _or_empty(value: Any) -> Any:
    # Go writes an empty list or map as null where the field is not `omitempty`.
    return {} if value is None else value


def _list_or_empty(value: Any) -> Any:
    return () if value is None else value


_Texts = Annotated[dict[str, str], BeforeValidator(_or_empty)]


def _at(*path: str | int) -> Any:
    return AliasPath(path[0], *path[1:])  # pyright: ignore[reportArgumentType]


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class _Object(_Read):
    name: str = Field(validation_alias=_at("metadata", "name"))
    namespace: str = Field(default="", validation_alias=_at("metadata", "namespace"))
    uid: str = Field(default="", validation_alias=_at("metadata", "uid"))
    created_at: datetime | None = Field(
        default=None, validation_alias=_at("metadata", "creationTimestamp")
    )
    deleted_at: datetime | None = Field(
        default=None, validation_alias=_at("metadata", "deletionTimestamp")
    )
    labels: _Texts = Field(
        default_factory=dict[str, str], validation_alias=_at("metadata", "labels")
    )

    @property
    def is_terminating(self) -> bool:
        """Whether its deletion has been accepted. That cannot be undone."""
        return self.deleted_at is not None


class ObjectCondition(_Read):
    """A condition of an object's status.

    Attributes:
        status: `True`, `False` or `Unknown`.
        since: When the status last changed.
    """

    type: str
    status: str
    reason: str = ""
    message: str = ""
    since: datetime | None = Field(default=None, validation_alias=_at("lastTransitionTime"))


_Conditions = Annotated[tuple[ObjectCondition, ...], BeforeValidator(_list_or_empty)]


class RayClusterObject(_Object):
    """A RayCluster.

    Attributes:
        resource_version: Changes with each change of the object. Pass it back to change or delete
            the object only if nobody else has changed it.
        finalizers: What holds its deletion.
        suspended: Whether its spec asks for no pods (`spec.suspend`); Kueue sets and clears it.
        conditions: In KubeRay 1.4 to 1.7: `HeadPodReady`, `RayClusterProvisioned`,
            `ReplicaFailure`, `RayClusterSuspending`, `RayClusterSuspended`. Empty until the
            operator has seen the object.
        head_service: Name of the service of the head; None until the operator has made it.
        head_pod: Name of the pod of the head.
        auth_mode: `authOptions.mode` of its spec; None if it has none.
        auth_secret: The Secret with its token; None if KubeRay makes one for it alone.
    """

    resource_version: str = Field(default="", validation_alias=_at("metadata", "resourceVersion"))
    annotations: _Texts = Field(
        default_factory=dict[str, str], validation_alias=_at("metadata", "annotations")
    )
    finalizers: Annotated[tuple[str, ...], BeforeValidator(_list_or_empty)] = Field(
        default=(), validation_alias=_at("metadata", "finalizers")
    )
    suspended: Annotated[bool, BeforeValidator(bool)] = Field(
        default=False, validation_alias=_at("spec", "suspend")
    )
    conditions: _Conditions = Field(default=(), validation_alias=_at("status", "conditions"))
    head_service: str | None = Field(
        default=None, validation_alias=_at("status", "head", "serviceName")
    )
    head_pod: str | None = Field(default=None, validation_alias=_at("status", "head", "podName"))
    auth_mode: str | None = Field(default=None, validation_alias=_at("spec", "authOptions", "mode"))
    auth_secret: str | None = Field(
        default=None, validation_alias=_at("spec", "authOptions", "secretName")
    )

    @property
    def has_token(self) -> bool:
        """Whether the cluster asks for a bearer token."""
        return self.auth_mode == "token"

    def condition(self, kind: str) -> ObjectCondition | None:
        """Return a condition by its type; None if the operator has not set it."""
        return next((found for found in self.conditions if found.type == kind), None)

    def is_true(self, kind: str) -> bool:
        """Return whether a condition is there and `True`."""
        found = self.condition(kind)
        return found is not None and found.status == "True"


class ContainerObject(_Read):
    """The status of one container of a pod.

    Attributes:
        waiting: Why it does not run, such as `ImagePullBackOff` or `CrashLoopBackOff`.
        ended: How it ended last, such as `OOMKilled` or `Error`; after a restart, how the run
            before ended.
        exit_code: Of that end.
    """

    name: str
    ready: bool = False
    restarts: int = Field(default=0, validation_alias=_at("restartCount"))
    image: str = ""
    waiting: str | None = Field(default=None, validation_alias=_at("state", "waiting", "reason"))
    waiting_message: str = Field(default="", validation_alias=_at("state", "waiting", "message"))
    terminated_reason: str | None = Field(
        default=None, validation_alias=_at("state", "terminated", "reason")
    )
    terminated_code: int | None = Field(
        default=None, validation_alias=_at("state", "terminated", "exitCode")
    )
    last_reason: str | None = Field(
        default=None, validation_alias=_at("lastState", "terminated", "reason")
    )
    last_code: int | None = Field(
        default=None, validation_alias=_at("lastState", "terminated", "exitCode")
    )

    @property
    def ended(self) -> str | None:
        """How the container ended last; None if it never did."""
        return self.terminated_reason or self.last_reason

    @property
    def exit_code(self) -> int | None:
        """Exit code of the last end; None if there was none."""
        return self.last_code if self.terminated_code is None else self.terminated_code


_Containers = Annotated[tuple[ContainerObject, ...], BeforeValidator(_list_or_empty)]


class _OwnerReference(_Read):
    uid: str = ""


class PodObject(_Object):
    """A pod of a RayCluster.

    Attributes:
        phase: `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
        reason: Of the pod itself, such as `Evicted`.
        conditions: `PodScheduled=False` with reason `Unschedulable` has the scheduler's words.
        containers: The status of each container, init containers first.
    """

    phase: str = Field(default="", validation_alias=_at("status", "phase"))
    reason: str = Field(default="", validation_alias=_at("status", "reason"))
    message: str = Field(default="", validation_alias=_at("status", "message"))
    ip: str | None = Field(default=None, validation_alias=_at("status", "podIP"))
    node: str | None = Field(default=None, validation_alias=_at("spec", "nodeName"))
    conditions: _Conditions = Field(default=(), validation_alias=_at("status", "conditions"))
    init_containers: _Containers = Field(
        default=(), validation_alias=_at("status", "initContainerStatuses")
    )
    main_containers: _Containers = Field(
        default=(), validation_alias=_at("status", "containerStatuses")
    )
    owners: Annotated[tuple[_OwnerReference, ...], BeforeValidator(_list_or_empty)] = Field(
        default=(), validation_alias=_at("metadata", "ownerReferences")
    )

    @property
    def containers(self) -> tuple[ContainerObject, ...]:
        """Init containers, then the others."""
        return self.init_containers + self.main_containers

    @property
    def cluster(self) -> str | None:
        """Name of its RayCluster, by label. Check `belongs_to` as well: labels are not unique."""
        return self.labels.get(CLUSTER_LABEL)

    @property
    def is_head(self) -> bool:
        """Whether it is the head of its RayCluster."""
        return self.labels.get(NODE_TYPE_LABEL) == "head"

    @property
    def is_ready(self) -> bool:
        """Whether all its containers answer their probes."""
        return any(c.type == "Ready" and c.status == "True" for c in self.conditions)

    @property
    def unschedulable(self) -> str | None:
        """The scheduler's words, if no node takes the pod."""
        for found in self.conditions:
            if found.type == "PodScheduled" and found.status == "False":
                return found.message or found.reason
        return None

    def belongs_to(self, uid: str) -> bool:
        """Return whether the RayCluster with this uid owns the pod.

        A RayCluster of the same name that was deleted can leave pods for a while.
        """
        return any(owner.uid == uid for owner in self.owners)


class EventObject(_Read):
    """An event about an object, core/v1 or events.k8s.io; both are listed by core/v1.

    Attributes:
        about: The uid of the object.
        type: `Normal` or `Warning`.
    """

    about: str = Field(default="", validation_alias=_at("involvedObject", "uid"))
    type: str = "Normal"
    reason: str = ""
    message: str = ""
    last_at: datetime | None = Field(default=None, validation_alias=_at("lastTimestamp"))
    event_at: datetime | None = Field(default=None, validation_alias=_at("eventTime"))
    created_at: datetime | None = Field(
        default=None, validation_alias=_at("metadata", "creationTimestamp")
    )
    count: int | None = 1

    @property
    def at(self) -> datetime | None:
        """When it last happened. Events of events.k8s.io have no `lastTimestamp`."""
        return self.last_at or self.event_at or self.created_at
