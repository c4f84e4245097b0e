"""What a RayCluster, its pods and its events say together."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_ray_worker.clusters.kuberay.reading import (
    ClusterState,
    Evidence,
    StartPatience,
    reading,
    stuck_containers,
)
from prefect_ray_worker.kubernetes_api.models import EventObject, PodObject, RayClusterObject
from prefect_ray_worker.shared.category import Category

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
UNSCHEDULABLE = "0/5 nodes are available: 3 Insufficient cpu."


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def condition(kind: str, status: str = "True", **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": ago(10), **more}


def cluster(*conditions: dict[str, str], age: float = 10, **metadata: Any) -> RayClusterObject:
    spec = {"suspend": metadata.pop("suspend", False)}
    return RayClusterObject.model_validate(
        {
            "metadata": {"name": "a", "uid": UID, "creationTimestamp": ago(age), **metadata},
            "spec": spec,
            "status": {"conditions": list(conditions)},
        }
    )


def pod(*, head: bool = True, owner: str = UID, age: float = 10, **status: Any) -> PodObject:
    return PodObject.model_validate(
        {
            "metadata": {
                "name": "a-head" if head else "a-worker",
                "creationTimestamp": ago(age),
                "labels": {"ray.io/node-type": "head" if head else "worker"},
                "ownerReferences": [{"uid": owner}],
            },
            "status": status,
        }
    )


def container(**of: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "ray-head", "image": "ray:1", **of}]}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return container(state={"waiting": {"reason": reason, "message": message}}, **more)


def unschedulable(**more: Any) -> PodObject:
    said = condition("PodScheduled", "False", reason="Unschedulable", message=UNSCHEDULABLE)
    return pod(phase="Pending", conditions=[said], **more)


def crashed(restarts: int) -> dict[str, Any]:
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    return waiting("CrashLoopBackOff", restartCount=restarts, lastState=ended)


def event(reason: str, message: str, kind: str = "Warning") -> EventObject:
    return EventObject.model_validate({"type": kind, "reason": reason, "message": message})


def stuck(seconds: float, of: PodObject) -> Evidence:
    return Evidence(
        cluster(), [of], stuck_since={(of.uid, "ray-head"): NOW - timedelta(seconds=seconds)}
    )


WAITS: list[tuple[str, Evidence, ClusterState, Category | None, str]] = [
    ("absent", Evidence(None), ClusterState.ABSENT, None, "does not exist"),
    ("just created", Evidence(cluster(age=5)), ClusterState.PROVISIONING, None, "being created"),
    (
        "operator silent",
        Evidence(cluster(age=61)),
        ClusterState.PROVISIONING,
        Category.OPERATOR_SILENT,
        "operator has done nothing for it in 60 s",
    ),
    (
        "queued by Kueue",
        Evidence(cluster(condition("RayClusterSuspended"), age=9000, suspend=True)),
        ClusterState.QUEUED,
        None,
        "suspended",
    ),
    (
        "unschedulable",
        Evidence(cluster(condition("HeadPodReady", "Unknown")), [unschedulable()]),
        ClusterState.PROVISIONING,
        Category.CLUSTER_UNSCHEDULABLE,
        "the head waits for a node: 0/5 nodes are available: 3 Insufficient cpu",
    ),
    (
        "pod quota",
        Evidence(cluster(condition("ReplicaFailure", message="pods: exceeded quota: small"))),
        ClusterState.PROVISIONING,
        Category.CLUSTER_QUOTA,
        "exceeded quota: small",
    ),
    (
        "service quota",
        Evidence(cluster(), events=[event("FailedToCreateService", "exceeded quota: services")]),
        ClusterState.PROVISIONING,
        Category.CLUSTER_QUOTA,
        "FailedToCreateService: exceeded quota: services",
    ),
    (
        "image is being pulled again",
        Evidence(cluster(), [pod(age=100, **waiting("ImagePullBackOff", "not found"))]),
        ClusterState.PROVISIONING,
        Category.CLUSTER_IMAGE,
        "cannot pull ray:1 (ImagePullBackOff: not found)",
    ),
    (
        "crashed once",
        Evidence(cluster(), [pod(**crashed(1))]),
        ClusterState.PROVISIONING,
        Category.HEAD_CRASH_LOOP,
        "crashed once (OOMKilled, exit code 137)",
    ),
    (
        "head up, dashboard silent",
        Evidence(cluster(condition("HeadPodReady")), [pod()], silence="HTTP 503"),
        ClusterState.HEAD_READY,
        None,
        "does not take jobs yet (HTTP 503)",
    ),
    (
        "head failed",
        Evidence(cluster(), [pod(phase="Failed", reason="Evicted", message="disk full.")]),
        ClusterState.PROVISIONING,
        None,
        "has failed (Evicted: disk full)",
    ),
    (
        "pods of an earlier cluster of the name",
        Evidence(cluster(age=5), [unschedulable(owner="other")]),
        ClusterState.PROVISIONING,
        None,
        "pods are starting",
    ),
    (
        "workers do not matter",
        Evidence(cluster(condition("HeadPodReady")), [unschedulable(head=False)]),
        ClusterState.HEAD_READY,
        None,
        "does not take jobs yet",
    ),
]


@pytest.mark.parametrize(
    ("evidence", "state", "category", "said"), [row[1:] for row in WAITS], ids=[r[0] for r in WAITS]
)
def test_why_a_cluster_is_not_ready_while_it_may_become_so(
    evidence: Evidence, state: ClusterState, category: Category | None, said: str
) -> None:
    found = reading(evidence, ready_when="head", patience=StartPatience(), now=NOW)
    assert (found.state, found.category, found.is_final) == (state, category, False)
    assert said in found.sentence


REFUSED = event("InvalidRayClusterSpec", "headGroupSpec should have at least one container.")
FINAL: list[tuple[str, Evidence, Category, str]] = [
    ("spec refused", Evidence(cluster(), events=[REFUSED]), Category.CLUSTER_SPEC_INVALID, "head"),
    (
        "image not there for long",
        stuck(181, pod(**waiting("ErrImagePull"))),
        Category.CLUSTER_IMAGE,
        "cannot pull ray:1 (ErrImagePull)",
    ),
    (
        "image name wrong",
        Evidence(cluster(), [pod(age=1, **waiting("InvalidImageName"))]),
        Category.CLUSTER_IMAGE,
        "InvalidImageName",
    ),
    (
        "secret missing",
        stuck(181, pod(**waiting("CreateContainerConfigError", "no key"))),
        Category.CLUSTER_SPEC_INVALID,
        "no key",
    ),
    ("crash loop", Evidence(cluster(), [pod(**crashed(3))]), Category.HEAD_CRASH_LOOP, "3 times"),
    ("head made anew", Evidence(cluster(), heads=4), Category.HEAD_CRASH_LOOP, "anew 3 times"),
    (
        "being deleted",
        Evidence(cluster(deletionTimestamp=ago(1)), answers=True),
        Category.CLUSTER_DELETED,
        "being deleted",
    ),
    (
        "unschedulable until the limit",
        Evidence(cluster(condition("HeadPodReady", "Unknown"), age=900), [unschedulable()]),
        Category.CLUSTER_UNSCHEDULABLE,
        "within 900 s (start_timeout_seconds): the head waits for a node: 0/5",
    ),
    ("operator silent", Evidence(cluster(age=900)), Category.OPERATOR_SILENT, "done nothing"),
    (
        "dashboard silent until the limit",
        Evidence(cluster(condition("HeadPodReady"), age=901), [pod()]),
        Category.CLUSTER_START_TIMEOUT,
        "does not take jobs yet",
    ),
]


@pytest.mark.parametrize(
    ("evidence", "category", "said"), [row[1:] for row in FINAL], ids=[row[0] for row in FINAL]
)
def test_what_ends_the_waiting(evidence: Evidence, category: Category, said: str) -> None:
    found = reading(evidence, ready_when="head", patience=StartPatience(), now=NOW)
    assert (found.category, found.is_final) == (category, True)
    assert said in found.sentence


def test_the_wait_for_an_image_begins_with_the_first_failed_pull() -> None:
    """The first failed pull of a large image ended the start without kubelet's retry."""
    began, later = NOW - timedelta(seconds=200), NOW - timedelta(seconds=100)
    key = ("", "ray-head")
    pulls = pod(age=900, **waiting("ContainerCreating"))
    fails = pod(age=900, **waiting("ErrImagePull"))
    assert stuck_containers([pulls], {}, began) == {}
    first = stuck_containers([fails], {}, later)
    assert first == {key: later}
    found = reading(
        Evidence(cluster(), [fails], stuck_since=first),
        ready_when="head",
        patience=StartPatience(),
        now=NOW,
    )
    assert (found.category, found.is_final) == (Category.CLUSTER_IMAGE, False)
    assert stuck_containers([pulls], first, NOW) == first, "it is pulled again"
    assert stuck_containers([pod(**container(state={"running": {}}))], first, NOW) == {}


def test_time_in_a_queue_does_not_count() -> None:
    admitted = condition("RayClusterSuspended", "False")
    found = reading(
        Evidence(cluster(admitted, age=9000)),
        ready_when="head",
        patience=StartPatience(),
        now=NOW,
    )
    assert not found.is_final


@pytest.mark.parametrize(
    ("conditions", "ready_when", "state"),
    [
        ((condition("HeadPodReady"),), "head", ClusterState.ANSWERING),
        ((condition("HeadPodReady"),), "all", ClusterState.HEAD_READY),
        (
            (condition("HeadPodReady"), condition("RayClusterProvisioned")),
            "all",
            ClusterState.ANSWERING,
        ),
    ],
)
def test_a_cluster_that_takes_jobs_is_ready_when_the_pool_says_so(
    conditions: tuple[dict[str, str], ...], ready_when: Any, state: ClusterState
) -> None:
    evidence = Evidence(cluster(*conditions, age=9000), [pod()], answers=True)
    patience = StartPatience(start=10_000)
    assert reading(evidence, ready_when=ready_when, patience=patience, now=NOW).state is state
