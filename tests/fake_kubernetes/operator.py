"""`Operator`: KubeRay's half of a RayCluster's life, as far as a client can see it.

Each rule names where it stands in KubeRay (feeaf72, 1.7, below `ray-operator/controllers/ray/`) and
the test there that holds it. `raycluster_controller.go` is written as "controller".
"""

import base64
import secrets
from typing import Any

from tests.fake_kubernetes import conditions, statuses
from tests.fake_kubernetes.refusals import problem_with_metadata, problem_with_spec
from tests.fake_kubernetes.scripts import Script, Scripts
from tests.fake_kubernetes.store import Document, Store, now

CLEAN_UP_FINALIZER = "ray.io/gcs-ft-redis-cleanup-finalizer"
_CLUSTER = "ray.io/cluster"
_NODE_TYPE = "ray.io/node-type"


class Operator:
    """Reconciles all RayClusters.

    Args:
        store: The objects.
        scripts: What goes wrong.

    Attributes:
        writes_new_events: Events of events.k8s.io, as since KubeRay 1.7; False for core/v1.
    """

    def __init__(self, store: Store, scripts: Scripts) -> None:
        self._store = store
        self._scripts = scripts
        self._done_with: set[tuple[str, int]] = set()
        self._seen: tuple[str, str] | None = None
        self.writes_new_events = True

    def reconcile_all(self) -> None:
        """Do one round, if anything has changed since the last: with many clusters it is long."""
        if self._seen == (seen := self._signature()):
            return
        for cluster in self._store.all("rayclusters"):
            script = self._scripts.of(cluster["metadata"]["name"])
            if not script.ignored:
                self._reconcile(cluster, script)
        self._seen = seen

    def _signature(self) -> tuple[str, str]:
        told = (self._scripts.default, dict(self._scripts))
        return self._store.version, f"{told} {self._store.quotas} {self._store.namespaces}"

    def _reconcile(self, cluster: Document, script: Script) -> None:
        metadata = cluster["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        # controller Reconcile: a refused object is not looked at again until it changes; only an
        # event says so. validation_test.go TestValidateRayClusterSpec….
        if (metadata["uid"], metadata["generation"]) in self._done_with:
            return
        if refusal := self._refusal(cluster, script):
            self._done_with.add((metadata["uid"], metadata["generation"]))
            self._event(cluster, "Warning", *refusal)
            return
        # controller: with GCS fault tolerance on Redis, a finalizer first, and its end by a
        # clean-up job; test/e2e/raycluster_gcsft_test.go.
        if "deletionTimestamp" in metadata:
            if not script.held:
                self._store.drop_finalizer("rayclusters", namespace, name, CLEAN_UP_FINALIZER)
            return  # "RayCluster is being deleted, just ignore"
        if script.held and CLEAN_UP_FINALIZER not in metadata.get("finalizers", []):
            patch = {"metadata": {"finalizers": [CLEAN_UP_FINALIZER]}}
            self._store.patch("rayclusters", namespace, name, patch)
            return
        failure: tuple[str, str] | None = None
        try:
            self._auth_secret(cluster)
            self._head_service(cluster)
            failure = self._pods(cluster)
        except statuses.Refusal:
            pass  # of a secret or a service; reported where an event is sent for it
        self._status(cluster, failure)

    def _refusal(self, cluster: Document, script: Script) -> tuple[str, str] | None:
        metadata = cluster["metadata"]
        where = f"{metadata['namespace']}/{metadata['name']}"
        if problem := problem_with_metadata(metadata["name"]):
            return (
                "InvalidRayClusterMetadata",
                f"The RayCluster metadata is invalid {where}: {problem}",
            )
        if problem := script.refused or problem_with_spec(cluster["spec"]):
            return "InvalidRayClusterSpec", f"The RayCluster spec is invalid {where}: {problem}"
        return None

    def _auth_secret(self, cluster: Document) -> None:
        # controller reconcileAuthSecret; no event if it fails. e2e TestRayClusterAuthOptions.
        options = cluster["spec"].get("authOptions", {})
        name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
        if options.get("mode") != "token" or options.get("secretName"):
            return
        if self._store.find("secrets", namespace, name) is None:
            token = base64.b64encode(secrets.token_bytes(32))
            data = {"auth_token": base64.b64encode(token).decode()}
            self._create(cluster, "secrets", {"metadata": {"name": name}, "data": data})

    def _head_service(self, cluster: Document) -> None:
        # common/service.go BuildServiceForHeadPod: headless, and published before it is ready.
        # service_test.go TestBuildServiceForHeadPod….
        name, namespace = head_service_name(cluster), cluster["metadata"]["namespace"]
        if self._store.find("services", namespace, name) is not None:
            return
        selector = {_CLUSTER: cluster["metadata"]["name"], _NODE_TYPE: "head"}
        service = {
            "metadata": {"name": name, "labels": dict(selector)},
            "spec": {
                "selector": selector,
                "ports": _head_ports(cluster),
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
            },
        }
        try:
            self._create(cluster, "services", service)
        except statuses.Refusal as refusal:
            text = f"Failed creating service {namespace}/{name}, {refusal}"
            self._event(cluster, "Warning", "FailedToCreateService", text)
            raise

    def _pods(self, cluster: Document) -> tuple[str, str] | None:
        """Make and delete pods; return the reason and message of a failure."""
        spec, told = cluster["spec"], conditions.of(cluster)
        # controller reconcilePods; e2e TestRayClusterSuspend.
        if conditions.is_true(told, "RayClusterSuspending"):
            for pod in self._pods_of(cluster):
                self._delete_pod(pod)
            return None
        if conditions.is_true(told, "RayClusterSuspended") or spec.get("suspend"):
            return None
        heads = [p for p in self._pods_of(cluster) if _type_of(p) == "head"]
        # controller shouldDeletePod: a pod that ended is deleted and made anew, for ever.
        # raycluster_controller_unit_test.go Test_ShouldDeletePod.
        if heads and heads[0].get("status", {}).get("phase") in ("Failed", "Succeeded"):
            self._delete_pod(heads[0])
            text = f"Deleted head Pod {heads[0]['metadata']['name']}; Pod status: Failed"
            self._event(cluster, "Normal", "DeletedHeadPod", text)
            return None
        if not heads and (failure := self._make_pod(cluster, None)):
            return failure
        for group in spec.get("workerGroupSpecs", []):
            have = [p for p in self._pods_of(cluster) if _group_of(p) == group["groupName"]]
            for _ in range(_wanted(group) - len(have)):
                if failure := self._make_pod(cluster, group):
                    return failure
        return None

    def _make_pod(self, cluster: Document, group: Document | None) -> tuple[str, str] | None:
        # controller createHeadPod; utils/util.go RayClusterReplicaFailureReason.
        # e2e TestRayClusterWithResourceQuota.
        kind = "head" if group is None else "worker"
        template = (cluster["spec"]["headGroupSpec"] if group is None else group)["template"]
        name = cluster["metadata"]["name"]
        group_name = "headgroup" if group is None else group["groupName"]
        prefix = f"{name[:50]}-head-" if group is None else f"{name}-{group_name}"[:50] + "-worker-"
        labels = {
            **template.get("metadata", {}).get("labels", {}),
            _CLUSTER: name,
            _NODE_TYPE: kind,
            "ray.io/group": group_name,
            "ray.io/is-ray-node": "yes",
        }
        spec = {**template["spec"], "containers": _with_token(cluster, template)}
        pod = {"metadata": {"generateName": prefix, "labels": labels}, "spec": spec}
        try:
            self._create(cluster, "pods", pod)
        except statuses.Refusal as refusal:
            reason = f"FailedCreate{kind.title()}Pod"
            where = f"{cluster['metadata']['namespace']}/{name}"
            text = f"Failed to create {kind} Pod {where}, {refusal}"
            self._event(cluster, "Warning", f"FailedToCreate{kind.title()}Pod", text)
            return reason, f"failed to create {kind} pod\n{refusal}"
        return None

    def _status(self, cluster: Document, failure: tuple[str, str] | None) -> None:
        # controller calculateStatus: without the head service nothing at all is stored.
        # raycluster_controller_unit_test.go TestCalculateStatus, and see conditions.py.
        metadata = cluster["metadata"]
        service = head_service_name(cluster)
        if self._store.find("services", metadata["namespace"], service) is None:
            return
        pods, spec = self._pods_of(cluster), cluster["spec"]
        after = conditions.worked_out(
            conditions.of(cluster), pods, suspend=bool(spec.get("suspend")), failure=failure
        )
        wanted = sum(_wanted(group) for group in spec.get("workerGroupSpecs", []))
        workers = [p for p in pods if _type_of(p) == "worker"]
        head = next((p for p in pods if _type_of(p) == "head"), None)
        status: dict[str, Any] = {
            "conditions": list(after.values()),
            "observedGeneration": metadata["generation"],
            "desiredWorkerReplicas": wanted,
            "readyWorkerReplicas": sum(conditions.is_ready(p) for p in workers),
            # utils/util.go: serviceIP is the pod's, since the service is headless.
            "head": {"serviceName": service, **_head_info(head)},
        }
        all_ready = len(pods) == wanted + 1 and all(conditions.is_ready(p) for p in pods)
        if failure is None and all_ready:
            status["state"] = "ready"
        elif "state" in cluster.get("status", {}):
            status["state"] = cluster["status"]["state"]  # never taken back
        if spec.get("suspend") and not pods:
            status["state"] = "suspended"
        before = {k: v for k, v in cluster.get("status", {}).items() if k != "lastUpdateTime"}
        if status != before:
            patch = {"status": {**status, "lastUpdateTime": now()}}
            self._store.patch(
                "rayclusters", metadata["namespace"], metadata["name"], patch, part="status"
            )

    def _pods_of(self, cluster: Document) -> list[Document]:
        # common/association.go: by label alone, so leftovers of an earlier one of the name count.
        name, namespace = cluster["metadata"]["name"], cluster["metadata"]["namespace"]
        pods = self._store.all("pods", namespace)
        return [p for p in pods if p["metadata"].get("labels", {}).get(_CLUSTER) == name]

    def _delete_pod(self, pod: Document) -> None:
        metadata = pod["metadata"]
        self._store.delete("pods", metadata["namespace"], metadata["name"], grace=True)

    def _create(self, cluster: Document, resource: str, document: Document) -> None:
        metadata = cluster["metadata"]
        document["metadata"].setdefault("labels", {})[_CLUSTER] = metadata["name"]
        document["metadata"]["ownerReferences"] = [
            {
                "apiVersion": "ray.io/v1",
                "kind": "RayCluster",
                "name": metadata["name"],
                "uid": metadata["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
        self._store.create(resource, metadata["namespace"], document)

    def _event(self, cluster: Document, kind: str, reason: str, message: str) -> None:
        metadata = cluster["metadata"]
        for event in self._store.all("events", metadata["namespace"]):
            same = (event["involvedObject"]["uid"], event["message"])
            if same == (metadata["uid"], message):
                return
        times: Document = (
            {"eventTime": now(), "firstTimestamp": None, "lastTimestamp": None}
            if self.writes_new_events
            else {"eventTime": None, "firstTimestamp": now(), "lastTimestamp": now(), "count": 1}
        )
        about = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        }
        event = {
            "metadata": {"generateName": f"{metadata['name'][:40]}."},
            "involvedObject": about,
            "type": kind,
            "reason": reason,
            "message": message,
            **times,
        }
        self._store.create("events", metadata["namespace"], event)


def head_service_name(cluster: Document) -> str:
    # utils/util.go GenerateHeadServiceName.
    chosen = cluster["spec"]["headGroupSpec"].get("headService", {}).get("metadata", {})
    return chosen.get("name") or f"{cluster['metadata']['name']}-head-svc"


def _head_ports(cluster: Document) -> list[Document]:
    # common/service.go getServicePorts: the container's ports by name; the defaults only if it
    # lists none. service_test.go TestGetServicePorts….
    container = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    listed = {p["name"]: p["containerPort"] for p in container.get("ports", []) if "name" in p}
    default = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    ports = {**(listed or default), "metrics": (listed or {}).get("metrics", 8080)}
    return [{"name": name, "port": port} for name, port in sorted(ports.items())]


def _with_token(cluster: Document, template: Document) -> list[Document]:
    # common/pod.go: RAY_AUTH_MODE and RAY_AUTH_TOKEN in each Ray container.
    first, *others = template["spec"]["containers"]
    options = cluster["spec"].get("authOptions", {})
    if options.get("mode") != "token":
        return [first, *others]
    name = options.get("secretName") or cluster["metadata"]["name"]
    token = {"secretKeyRef": {"name": name, "key": "auth_token"}}
    env = [
        *first.get("env", []),
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": token},
    ]
    return [{**first, "env": env}, *others]


def _wanted(group: Document) -> int:
    return max(group.get("replicas", 0), group.get("minReplicas", 0))


def _type_of(pod: Document) -> str:
    return pod["metadata"]["labels"].get(_NODE_TYPE, "")


def _group_of(pod: Document) -> str:
    return pod["metadata"]["labels"].get("ray.io/group", "")


def _head_info(pod: Document | None) -> dict[str, str]:
    if pod is None:
        return {}
    ip = pod.get("status", {}).get("podIP")
    named = {"podName": pod["metadata"]["name"]}
    return {**named, "podIP": ip, "serviceIP": ip} if ip else named
