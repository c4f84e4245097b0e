"""The RayCluster of an attempt, or of runs that share one: name, labels and spec. Pure.

Names follow from the attempt, or from pool and specification, so that every worker, and one worker
asked twice, creates the same object. Annotations carry the policy, so that any worker of any
release can clean up.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from prefect_ray_worker.config.kuberay import (
    DEFAULT_IDLE_SECONDS,
    KubeRay,
    KubeRayHead,
    KubeRayNode,
    KubeRayWorkerGroup,
)
from prefect_ray_worker.config.memory import memory_in_bytes
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.shared.ids import attempt_in, own_cluster_name, run_in

API_VERSION = "ray.io/v1"
DASHBOARD_PORT = 8265

MANAGED_BY = {"app.kubernetes.io/managed-by": "prefect-ray-worker"}
POOL_LABEL = "prefect.io/work-pool-id"
RUN_LABEL = "prefect.io/flow-run-id"
SCOPE_LABEL = "prefect-ray-worker/scope"
ATTEMPT_LABEL = "prefect-ray-worker/attempt"
SPEC_LABEL = "prefect-ray-worker/spec"
GENERATION_LABEL = "prefect-ray-worker/generation"
SHARED = "shared"

PROBE_LABELS = {"prefect-ray-worker/doctor": "probe"}
"""Of the suspended RayCluster by which `doctor` examines the operator; the sweep looks for it."""

KEEP_FAILED = "prefect-ray-worker/keep-failed-seconds"
MAX_LIFETIME = "prefect-ray-worker/max-lifetime-seconds"
START_TIMEOUT = "prefect-ray-worker/start-timeout-seconds"
IDLE = "prefect-ray-worker/idle-seconds"
JOINED_AT = "prefect-ray-worker/joined-at"
"""When a run last joined, and which attempt: `<moment> <attempt>`, so that no two are equal."""
CLOSING = "prefect-ray-worker/closing"
"""Why nothing may join the cluster any more; it is deleted next, and never opened again."""

_PORTS = (("gcs-server", 6379), ("dashboard", DASHBOARD_PORT), ("client", 10001))
# `authOptions.mode: token` needs this Ray (KubeRay 1.5 `validation.go`).
_OLDEST_WITH_TOKEN = (2, 52)
_VERSION = re.compile(r"(\d+)\.(\d+)\.\d+")
_TAG = re.compile(r":v?(\d+\.\d+\.\d+)[^/]*$")
_SHARED_NAME = re.compile(r"(ray-[a-z0-9-]{1,18}-[0-9a-f]{10})-([1-9][0-9]{0,8})")
_LONGEST_POOL = 18

_ACCOUNT = "autoscaler-account"
_ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
# The files that Kubernetes mounts by default. The autoscaler reads a renewed token (Ray 2.60).
_ACCOUNT_FILES = [
    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {
        "downwardAPI": {
            "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
        }
    },
]

Spec = dict[str, Any]


def cluster_name(job_id: str) -> str:
    """Return the name of the cluster of an attempt: 49 characters, of which KubeRay takes 53.

    Args:
        job_id: The submission id of the attempt's job.

    Raises:
        ValueError: It is not the id of a flow run's job.
    """
    return own_cluster_name(job_id)


def is_shared_name(name: str) -> bool:
    """Return whether a name is one of a shared cluster, by its form."""
    return _SHARED_NAME.fullmatch(name) is not None


def ray_cluster(asked: KubeRay, *, job_id: str, pool_id: str, namespace: str) -> dict[str, Any]:
    """Return the RayCluster for an attempt.

    Args:
        asked: The job variable.
        job_id: The submission id of the attempt's job.
        pool_id: The work pool, whose workers clean up.
        namespace: Where the cluster goes.

    Raises:
        InvalidConfiguration: The manifest cannot work.
    """
    manifest = _without_name(asked, pool_id, namespace)
    metadata = manifest["metadata"]
    metadata["name"] = cluster_name(job_id)
    metadata["labels"] |= {
        RUN_LABEL: str(run_in(job_id)),
        ATTEMPT_LABEL: attempt_in(job_id),
        SPEC_LABEL: _hash_of(manifest["spec"]),
    }
    metadata["annotations"][KEEP_FAILED] = str(asked.keep_failed_seconds)
    return manifest


def shared_cluster(
    asked: KubeRay, *, pool_id: str, pool_name: str, namespace: str
) -> "SharedManifest":
    """Return the RayCluster that runs of a pool share, for all its generations.

    Two job variables that are equal in all that makes the cluster, or decides how long it lives,
    give equal names.

    Args:
        asked: The job variable.
        pool_id: The work pool.
        pool_name: Its name, for people.
        namespace: Where the cluster goes.

    Raises:
        InvalidConfiguration: The manifest cannot work.
    """
    manifest = _without_name(asked, pool_id, namespace)
    manifest["metadata"]["annotations"][IDLE] = str(
        DEFAULT_IDLE_SECONDS if asked.idle_seconds is None else asked.idle_seconds
    )
    digest = _hash_of(manifest)
    manifest["metadata"]["labels"][SPEC_LABEL] = digest
    cleaned = re.sub("[^a-z0-9]+", "-", pool_name.lower())[:_LONGEST_POOL].strip("-")
    return SharedManifest(f"ray-{cleaned or 'pool'}-{digest}", manifest)


@dataclass(frozen=True)
class SharedManifest:
    """A RayCluster that runs share, of which there can be several, one after another.

    A name is not used again while something of its bearer is left; so the name ends in a number,
    the generation.

    Attributes:
        prefix: Of the name of each generation; at most 34 characters.
        manifest: The RayCluster, without name and generation.
    """

    prefix: str
    manifest: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """The labels that all its generations have, and no other RayCluster."""
        labels = self.manifest["metadata"]["labels"]
        return {key: labels[key] for key in (*MANAGED_BY, POOL_LABEL, SCOPE_LABEL, SPEC_LABEL)}

    def name(self, generation: int) -> str:
        """Return the name of a generation: 44 characters at most, of which KubeRay takes 53."""
        return f"{self.prefix}-{generation}"

    def generation_of(self, name: str) -> int | None:
        """Return which generation a name is of; None if it is not one of this cluster's."""
        match = _SHARED_NAME.fullmatch(name)
        return int(match[2]) if match is not None and match[1] == self.prefix else None

    def of(self, generation: int) -> dict[str, Any]:
        """Return the RayCluster of a generation."""
        manifest = copy.deepcopy(self.manifest)
        manifest["metadata"]["name"] = self.name(generation)
        manifest["metadata"]["labels"][GENERATION_LABEL] = str(generation)
        return manifest


def _without_name(asked: KubeRay, pool_id: str, namespace: str) -> dict[str, Any]:
    labels = {**asked.labels, **MANAGED_BY, POOL_LABEL: pool_id, SCOPE_LABEL: asked.scope}
    if asked.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = asked.queue
    annotations = {START_TIMEOUT: str(asked.start_timeout_seconds)}
    if asked.max_lifetime_seconds is not None:
        annotations[MAX_LIFETIME] = str(asked.max_lifetime_seconds)
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCluster",
        "metadata": {"namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": cluster_spec(asked),
    }


def cluster_spec(asked: KubeRay) -> Spec:
    """Return the spec of a RayCluster; it has nothing that differs from run to run.

    Raises:
        InvalidConfiguration: The manifest cannot work, or the version of Ray is not known.
    """
    spec = _of_manifest(asked.manifest) if asked.manifest is not None else _of_fields(asked)
    for number, template in enumerate(_templates(spec)):
        _complete(template, asked, is_head=number == 0)
    _refuse_different_images(spec)
    version = asked.ray_version or spec.get("rayVersion") or _version_in(_images(spec))
    if version is not None:
        spec["rayVersion"] = version
    _set_token(spec, asked, version)
    return spec


def _of_fields(asked: KubeRay) -> Spec:
    head = asked.head or KubeRayHead()
    params = {"dashboard-host": "0.0.0.0"}  # noqa: S104 (in a pod, behind its service)
    num_cpus = 0 if head.num_cpus is None and asked.workers else head.num_cpus
    if num_cpus is not None:
        params["num-cpus"] = f"{num_cpus:g}"
    spec: Spec = {"headGroupSpec": {"rayStartParams": params, "template": _pod("ray-head", head)}}
    if asked.workers:
        spec["workerGroupSpecs"] = [_group(group) for group in asked.workers]
    if any(group.most > group.min for group in asked.workers):
        spec["enableInTreeAutoscaling"] = True
        if asked.service_account is None:
            _mount_account_in_autoscaler_only(spec)
    return spec


def _mount_account_in_autoscaler_only(spec: Spec) -> None:
    """Keep the token of the head's account away from flows.

    KubeRay gives the head of an autoscaled cluster an account that can patch every RayCluster of
    the namespace (1.6), and Kubernetes mounts its token into all containers of the pod.
    """
    head = spec["headGroupSpec"]["template"]["spec"]
    head["automountServiceAccountToken"] = False
    head["volumes"] = [{"name": _ACCOUNT, "projected": {"sources": copy.deepcopy(_ACCOUNT_FILES)}}]
    mount = {"name": _ACCOUNT, "mountPath": _ACCOUNT_PATH, "readOnly": True}
    spec["autoscalerOptions"] = {"volumeMounts": [mount]}


def _group(group: KubeRayWorkerGroup) -> Spec:
    return {
        "groupName": group.name,
        "replicas": group.min,
        "minReplicas": group.min,
        "maxReplicas": group.most,
        "rayStartParams": {},
        "template": _pod("ray-worker", group),
    }


def _pod(container: str, node: KubeRayNode) -> Spec:
    amounts = {"cpu": f"{node.cpus:g}", "memory": str(memory_in_bytes(node.memory))}
    if node.gpus:
        amounts["nvidia.com/gpu"] = str(node.gpus)
    resources = {"requests": dict(amounts), "limits": dict(amounts)}
    return {"spec": {"containers": [{"name": container, "resources": resources}]}}


def _of_manifest(manifest: Mapping[str, Any]) -> Spec:
    spec = copy.deepcopy(dict(manifest))
    if "kind" in spec or "metadata" in spec:
        raise _refusal("is a whole RayCluster. Give what stands below its `spec`")
    if not isinstance(spec.get("headGroupSpec"), dict):
        raise _refusal("has no headGroupSpec")
    for template in _templates(spec):
        if not _containers(template):
            raise _refusal("has a pod template without containers")
    return spec


def _templates(spec: Spec) -> list[Spec]:
    """Return the pod templates of a spec, the head's first."""
    groups = spec.get("workerGroupSpecs") or []
    return [
        group.setdefault("template", {})
        for group in (spec["headGroupSpec"], *cast("list[Spec]", groups))
    ]


def _containers(template: Spec) -> list[Spec]:
    return template.get("spec", {}).get("containers") or []


def _ray_containers(spec: Spec) -> list[Spec]:
    # KubeRay takes the first container of a pod for Ray's (`utils/constant.go`).
    return [_containers(template)[0] for template in _templates(spec)]


def _images(spec: Spec) -> list[str]:
    return [str(c["image"]) for c in _ray_containers(spec) if c.get("image")]


def _complete(template: Spec, asked: KubeRay, *, is_head: bool) -> None:
    """Fill in what a pod template leaves out; nothing that it has is replaced."""
    if asked.labels:
        metadata = template.setdefault("metadata", {})
        metadata["labels"] = {**asked.labels, **(metadata.get("labels") or {})}
    if asked.service_account is not None:
        template["spec"].setdefault("serviceAccountName", asked.service_account)
    container = _containers(template)[0]
    if asked.image is not None:
        container.setdefault("image", asked.image)
    if is_head:
        ports = container.setdefault("ports", [])
        # KubeRay makes the ports of the head's service from these names.
        names = {port.get("name") for port in ports}
        numbers = {port.get("containerPort") for port in ports}
        wanted = _PORTS if not ports else _PORTS[1:2]
        if "dashboard" not in names and DASHBOARD_PORT in numbers:
            raise _refusal("names port 8265 of the head, and not `dashboard`. Name it so")
        ports += [
            {"name": name, "containerPort": port} for name, port in wanted if name not in names
        ]
    present = container.get("env") or []
    named = {entry.get("name") for entry in present}
    env = [*present, *(e for e in _secret_env(asked.secrets) if e["name"] not in named)]
    if env:
        container["env"] = env


def _secret_env(secrets: Mapping[str, str]) -> list[Spec]:
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, (secret, _, key) in sorted((n, w.partition("/")) for n, w in secrets.items())
    ]


def _refuse_different_images(spec: Spec) -> None:
    images = sorted(set(_images(spec)))
    if len(images) < 1:
        raise _refusal("has no image. Set kuberay.image")
    if len(images) > 1:
        raise _refusal(
            f"has Ray containers with different images: {', '.join(images)}. Ray and Python must "
            "be the same on all nodes"
        )


def _set_token(spec: Spec, asked: KubeRay, version: str | None) -> None:
    """Have the cluster ask for a token, unless the manifest says something else."""
    if "authOptions" in spec:
        return
    match = _VERSION.match(str(version or ""))
    if match is None:
        raise InvalidConfiguration(
            "job variable 'kuberay.ray_version' is needed: the tag of the image does not name the "
            "version of Ray, and KubeRay gives a cluster a token only if it knows it. Set it, or "
            "set kuberay.manifest.authOptions.mode to disabled for a cluster without a token."
        )
    if (int(match[1]), int(match[2])) < _OLDEST_WITH_TOKEN:
        raise InvalidConfiguration(
            f"job variable 'kuberay.ray_version' is {version}; token authentication came with Ray "
            "2.52. Take a newer image, or set kuberay.manifest.authOptions.mode to disabled for a "
            "cluster that anybody in the Kubernetes cluster can use."
        )
    spec["authOptions"] = {"mode": "token"}
    if asked.token_secret is not None:
        spec["authOptions"]["secretName"] = asked.token_secret


def _version_in(images: Iterable[str]) -> str | None:
    found = (_TAG.search(image) for image in images)
    return next((match[1] for match in found if match is not None), None)


def _hash_of(spec: Spec) -> str:
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _refusal(what: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"job variable 'kuberay.manifest' {what}.")
