"""The conditions of a RayCluster, as KubeRay works them out (`calculateStatus`). Pure."""

from typing import Any

from tests.fake_kubernetes.store import now

Document = dict[str, Any]


def of(cluster: Document) -> dict[str, Document]:
    """Return the conditions by type, as copies."""
    return {c["type"]: dict(c) for c in cluster.get("status", {}).get("conditions", [])}


def is_true(conditions: dict[str, Document], kind: str) -> bool:
    return conditions.get(kind, {}).get("status") == "True"


def worked_out(
    before: dict[str, Document],
    pods: list[Document],
    *,
    suspend: bool,
    failure: tuple[str, str] | None,
) -> dict[str, Document]:
    """Return the conditions after a round, in KubeRay's order.

    raycluster_controller_unit_test.go: TestCalculateStatus, TestRayClusterProvisionedCondition.
    """
    after = dict(before)
    if failure is not None:
        _put(after, "ReplicaFailure", "True", *failure)
    else:
        after.pop("ReplicaFailure", None)
    heads = [p for p in pods if p["metadata"]["labels"].get("ray.io/node-type") == "head"]
    _put(after, "HeadPodReady", *_head_ready(heads[0] if heads else None))
    # True once and for all, but for a suspension.
    if not is_true(after, "RayClusterProvisioned") and not is_true(after, "RayClusterSuspended"):
        if pods and all(is_ready(pod) for pod in pods):
            told = ("AllPodRunningAndReadyFirstTime", "All Ray Pods are ready for the first time")
            _put(after, "RayClusterProvisioned", "True", *told)
        else:
            told = (
                "RayClusterPodsProvisioning",
                "RayCluster Pods are being provisioned for first time",
            )
            _put(after, "RayClusterProvisioned", "False", *told)
    _put_suspension(after, suspend=suspend, has_pods=bool(pods))
    return after


def is_ready(pod: Document) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _head_ready(pod: Document | None) -> tuple[str, str, str]:
    # utils/util.go FindHeadPodReadyCondition, util_test.go of the same name. A pod that waits for a
    # node has no condition Ready, hence "Unknown".
    if pod is None:
        return "False", "HeadPodNotFound", "Head Pod not found"
    status = pod.get("status", {})
    ready = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), None)
    if ready is None:
        return "False", "Unknown", ""
    if ready["status"] == "True":
        return "True", "HeadPodRunningAndReady", ""
    for container in status.get("containerStatuses", []):
        waiting = container["state"].get("waiting")
        if waiting is not None and ready.get("reason") == "ContainersNotReady":
            said = f"{ready['message']}; {container['name']}: {waiting['message']}"
            return "False", waiting["reason"], said
    return "False", ready.get("reason", "Unknown"), ready.get("message", "")


def _put_suspension(conditions: dict[str, Document], *, suspend: bool, has_pods: bool) -> None:
    # utils/util.go FindRayClusterSuspendStatus; e2e TestRayClusterSuspend.
    if is_true(conditions, "RayClusterSuspending"):
        if not has_pods:
            told = ("RayClusterPodsProvisioning", "RayCluster has been suspended")
            _put(conditions, "RayClusterProvisioned", "False", *told)
            _put(conditions, "RayClusterSuspending", "False", "RayClusterSuspending")
            _put(conditions, "RayClusterSuspended", "True", "RayClusterSuspended")
    elif is_true(conditions, "RayClusterSuspended"):
        if not suspend:
            _put(conditions, "RayClusterSuspended", "False", "RayClusterSuspended")
    else:
        _put(conditions, "RayClusterSuspended", "False", "RayClusterSuspended")
        wanted = "True" if suspend else "False"
        _put(conditions, "RayClusterSuspending", wanted, "RayClusterSuspending")


def _put(
    conditions: dict[str, Document], kind: str, status: str, reason: str, message: str = ""
) -> None:
    before = conditions.get(kind, {})
    same = before.get("status") == status
    since = before["lastTransitionTime"] if same else now()
    conditions[kind] = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since,
    }
