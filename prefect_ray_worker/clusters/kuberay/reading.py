"""What a RayCluster, its pods and its events say together, and whether to wait. Pure.

Facts are those of KubeRay 1.4 to 1.7. A cluster's conditions name only a part of the troubles: the
scheduler's words are on the pod alone, a refused spec is an event alone, and an operator that is
not there leaves nothing at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal

from prefect_ray_worker.kubernetes_api.models import (
    ContainerObject,
    EventObject,
    PodObject,
    RayClusterObject,
)
from prefect_ray_worker.shared.category import Category

_IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
# What no pull will mend.
_HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
# A Secret, a ConfigMap or a service account that the pod names is not there.
_CONFIG_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_QUOTA = "exceeded quota"

ContainerKey = tuple[str, str]
"""The uid of a pod, and the name of a container in it."""


class ClusterState(Enum):
    """How far a cluster is, as the Kubernetes API and Ray tell."""

    ABSENT = "absent"
    QUEUED = "queued"
    PROVISIONING = "provisioning"
    HEAD_READY = "head ready"
    ANSWERING = "answering"
    TERMINATING = "terminating"


@dataclass(frozen=True)
class Evidence:
    """What was read of a cluster at one moment.

    Attributes:
        cluster: The RayCluster; None if the API certainly has none.
        pods: Pods with its label; those of an earlier cluster of the name are ignored.
        events: Events about the RayCluster.
        answers: Whether Ray answers and takes jobs.
        silence: Why it does not, in words.
        heads: How many different head pods were seen: KubeRay makes a lost head anew.
        down_since: For a cluster that may have been up: when it was last found to be down.
        stuck_since: Since when containers lack their image or a Secret; see `stuck_containers`.
    """

    cluster: RayClusterObject | None
    pods: Sequence[PodObject] = ()
    events: Sequence[EventObject] = ()
    answers: bool = False
    silence: str = ""
    heads: int = 1
    down_since: datetime | None = None
    stuck_since: Mapping[ContainerKey, datetime] = field(
        default_factory=dict[ContainerKey, datetime]
    )


@dataclass(frozen=True)
class StartPatience:
    """How long a start may take, in seconds.

    Attributes:
        start: From the creation until the cluster takes jobs; time in a queue does not count.
        image: From the first failed pull of an image, or the first sign that a Secret is missing.
        operator: For a first sign of KubeRay's operator.
        crashes: Crashes of the head that end the waiting.
    """

    start: float = 900.0
    image: float = 180.0
    operator: float = 60.0
    crashes: int = 3


@dataclass(frozen=True)
class Reading:
    """What the evidence says.

    Attributes:
        state: How far the cluster is.
        sentence: Why it is not ready, as a clause without a full stop; empty if it is.
        category: The trouble; None if it only takes its time.
        is_final: Whether waiting is over: the cluster does not become ready.
        is_late: Whether it is over only because the cluster has taken too long.
        delay: Where it is late, the sentence without the time that it has taken.
        answers: Whether Ray answers and takes jobs.
    """

    state: ClusterState
    sentence: str = ""
    category: Category | None = None
    is_final: bool = False
    is_late: bool = False
    delay: str = ""
    answers: bool = False


def stuck_containers(
    pods: Sequence[PodObject], before: Mapping[ContainerKey, datetime], now: datetime
) -> dict[ContainerKey, datetime]:
    """Return since when containers lack their image or a Secret.

    Args:
        pods: As they are at this look.
        before: What the last look returned: kubelet tries again, and may show something else then.
        now: The present.
    """
    return {
        key: before.get(key, now)
        for pod in pods
        for container in pod.containers
        for key in ((pod.uid, container.name),)
        if container.waiting in _IMAGE_REASONS | _CONFIG_REASONS
        or (container.waiting and key in before)
    }


def reading(
    evidence: Evidence,
    *,
    ready_when: Literal["head", "all"],
    patience: StartPatience,
    now: datetime,
) -> Reading:
    """Return what is known of a cluster that is being waited for.

    Args:
        evidence: What was read.
        ready_when: Whether the head is enough, or all pods must be ready.
        patience: How long the start may take.
        now: The present.
    """
    cluster = evidence.cluster
    if cluster is None:
        return Reading(ClusterState.ABSENT, "it does not exist")
    if cluster.is_terminating:
        return Reading(
            ClusterState.TERMINATING, "it is being deleted", Category.CLUSTER_DELETED, is_final=True
        )
    if evidence.answers and (ready_when == "head" or cluster.is_true("RayClusterProvisioned")):
        return Reading(ClusterState.ANSWERING)
    if _is_queued(cluster):
        return Reading(ClusterState.QUEUED, "it is suspended and waits to be admitted by its queue")
    found = _trouble(evidence, cluster, ready_when, patience, now) or _progress(evidence, cluster)
    if found.is_final or _age(cluster, now, evidence.down_since) < patience.start:
        return replace(found, answers=evidence.answers)
    missed = "was not ready" if evidence.answers else "did not take jobs"
    return Reading(
        found.state,
        f"it {missed} within {patience.start:g} s (start_timeout_seconds): {found.sentence}",
        found.category or Category.CLUSTER_START_TIMEOUT,
        is_final=True,
        is_late=True,
        delay=found.sentence,
        answers=evidence.answers,
    )


def _is_queued(cluster: RayClusterObject) -> bool:
    return bool(cluster.suspended) or cluster.is_true("RayClusterSuspended")


def _age(cluster: RayClusterObject, now: datetime, down_since: datetime | None = None) -> float:
    """Return for how long the cluster has been starting, without its time in a queue."""
    since = cluster.created_at or now
    if down_since is not None:
        since = max(since, down_since)
    suspended = cluster.condition("RayClusterSuspended")
    if suspended is not None and suspended.since is not None:
        since = max(since, suspended.since)  # it is not suspended any more
    return (now - since).total_seconds()


def _trouble(
    evidence: Evidence,
    cluster: RayClusterObject,
    ready_when: Literal["head", "all"],
    patience: StartPatience,
    now: datetime,
) -> Reading | None:
    refused = [e for e in evidence.events if e.reason.startswith("InvalidRayCluster")]
    if refused:
        message = f"KubeRay refuses it: {_clause(refused[-1].message)}"
        return _starting(message, Category.CLUSTER_SPEC_INVALID, is_final=True)
    pods = [
        pod
        for pod in evidence.pods
        if pod.belongs_to(cluster.uid) and (pod.is_head or ready_when == "all")
    ]
    for pod in pods:
        found = _of_pod(pod, evidence.stuck_since, patience, now)
        if found is not None:
            return found
    if evidence.heads > patience.crashes:
        lost = f"its head was lost and made anew {evidence.heads - 1} times"
        return _starting(lost, Category.HEAD_CRASH_LOOP, is_final=True)
    failure = cluster.condition("ReplicaFailure")
    if failure is not None and failure.status == "True":
        return _starting(
            f"KubeRay cannot create its pods: {_clause(failure.message or failure.reason)}",
            Category.CLUSTER_QUOTA if _QUOTA in failure.message else Category.CLUSTER_SPEC_INVALID,
        )
    failed = [e for e in evidence.events if e.type == "Warning" and e.reason.startswith("FailedTo")]
    if failed and not pods:
        message = failed[-1].message
        return _starting(
            f"KubeRay reports {failed[-1].reason}: {_clause(message)}",
            Category.CLUSTER_QUOTA if _QUOTA in message else None,
        )
    silent = not (cluster.conditions or evidence.events or pods)
    if silent and _age(cluster, now) >= patience.operator:
        nothing = f"KubeRay's operator has done nothing for it in {patience.operator:g} s"
        return _starting(nothing, Category.OPERATOR_SILENT)
    return None


def _of_pod(
    pod: PodObject,
    stuck_since: Mapping[ContainerKey, datetime],
    patience: StartPatience,
    now: datetime,
) -> Reading | None:
    who = "the head" if pod.is_head else f"the pod {pod.name}"
    if pod.unschedulable is not None:
        words = _clause(pod.unschedulable)
        return _starting(f"{who} waits for a node: {words}", Category.CLUSTER_UNSCHEDULABLE)
    for container in pod.containers:
        reason, said = container.waiting, _clause(container.waiting_message)
        # Not since the pod has its node: the first pull of a large image can fail after minutes.
        began = stuck_since.get((pod.uid, container.name), now)
        is_late = now - began >= timedelta(seconds=patience.image)
        if reason in _IMAGE_REASONS:
            image = container.image or "its image"
            return _starting(
                f"{who} cannot pull {image} ({reason}{f': {said}' if said else ''})",
                Category.CLUSTER_IMAGE,
                is_final=is_late or reason in _HOPELESS,
            )
        if reason in _CONFIG_REASONS:
            return _starting(
                f"{who} cannot start its container {container.name} ({reason}: {said})",
                Category.CLUSTER_SPEC_INVALID,
                is_final=is_late,
            )
        if container.restarts and not container.ready:
            return _starting(
                f"{who} has crashed {_times(container.restarts)} ({_end_of(container)})",
                Category.HEAD_CRASH_LOOP,
                is_final=container.restarts >= patience.crashes,
            )
    if pod.phase == "Failed":
        why = ": ".join(part for part in (pod.reason, _clause(pod.message)) if part)
        return _starting(f"{who} has failed{f' ({why})' if why else ''}; KubeRay makes it anew")
    return None


def _progress(evidence: Evidence, cluster: RayClusterObject) -> Reading:
    head = cluster.condition("HeadPodReady")
    if cluster.is_true("HeadPodReady"):
        if evidence.answers:
            return Reading(ClusterState.HEAD_READY, "its head is ready, and its workers are not")
        silence = f" ({evidence.silence})" if evidence.silence else ""
        return Reading(
            ClusterState.HEAD_READY, f"its head is up, and does not take jobs yet{silence}"
        )
    if head is not None and head.message:
        return _starting(f"its head is not ready ({head.reason}: {_clause(head.message)})")
    return _starting("its pods are starting" if evidence.pods else "its pods are being created")


def _starting(
    sentence: str, category: Category | None = None, *, is_final: bool = False
) -> Reading:
    return Reading(ClusterState.PROVISIONING, sentence, category, is_final)


def _end_of(container: ContainerObject) -> str:
    how = container.ended or container.waiting or "unknown"
    return how if container.exit_code is None else f"{how}, exit code {container.exit_code}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _clause(text: str) -> str:
    """Return the words of others as a clause: one line, no full stop."""
    return " ".join(text.split()).rstrip(".")
