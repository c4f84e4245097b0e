"""Kubernetes objects: valid to the field, pinned, bounded, without secrets and privileges."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.templates.folders import ROOT, TEMPLATES, containers, manifests

# KubeRay's own definitions, beside the checkout where this project is developed.
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
PINNED = re.compile(r".+:[\w.-]*\d+\.\d+[\w.-]*$")

OBJECTS = [
    pytest.param(path, manifest, id=f"{path.parent.name}-{manifest['kind']}-{number}")
    for number, (path, manifest) in enumerate(manifests())
    if manifest["kind"] != "Kustomization"  # put together by kustomize itself, below
]
CONTAINERS = [
    pytest.param(container, id=f"{path.parent.name}-{container['name']}-{number}")
    for path, manifest in manifests()
    for number, container in enumerate(containers(manifest))
]


@cache
def validator_of(kind: str) -> Any:
    """Return what checks objects of KubeRay of a kind, strictly: a misspelt field is an error."""
    plural = f"ray.io_{kind.lower()}s.yaml"
    document = yaml.load((CRDS / plural).read_text(), Loader=yaml.CSafeLoader)
    (version,) = (v for v in document["spec"]["versions"] if v["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    # What Kubernetes itself knows of every object.
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return validator(schema)


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and "type" in result:
        result.setdefault("additionalProperties", False)
    return result


@pytest.mark.parametrize(("path", "manifest"), OBJECTS)
def test_object_is_valid(path: Path, manifest: dict[str, Any]) -> None:
    group = manifest["apiVersion"].partition("/")[0]
    if group != "ray.io":
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        return
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's definitions are not in {CRDS}")
    validator_of(manifest["kind"]).validate({**manifest, "metadata": {}})


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"KubeRay's definitions are not in {CRDS}")
def test_misspelt_field_of_a_raycluster_is_refused() -> None:
    cluster = next(m for _, m in manifests() if m["kind"] == "RayCluster")
    spoilt = {**cluster, "metadata": {}, "spec": {**cluster["spec"], "rayVersoin": "2.60.0"}}
    with pytest.raises(jsonschema.ValidationError, match="rayVersoin"):
        validator_of("RayCluster").validate(spoilt)


@pytest.mark.parametrize("container", CONTAINERS)
def test_container_is_pinned_bounded_and_without_privileges(container: dict[str, Any]) -> None:
    assert PINNED.match(container["image"]), f"{container['image']} names no version"
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert (
        container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        or container["name"] == "worker"
    )
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("container", CONTAINERS)
def test_secrets_are_references(container: dict[str, Any]) -> None:
    for variable in container.get("env", []):
        if re.search(r"KEY|TOKEN$|PASSWORD|SECRET", variable["name"]):
            assert "secretKeyRef" in variable["valueFrom"], variable["name"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_worker_of_prefect_is_asked_for_its_health(container: dict[str, Any]) -> None:
    command = " ".join([*container.get("command", []), *container.get("args", [])])
    if "prefect worker start" not in command and "start.sh" not in command:
        return  # Ray's own: KubeRay adds their probes
    assert "--with-healthcheck" in command or "start.sh" in command
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "health"}
    assert {"containerPort": 8080, "name": "health"} in container["ports"]


@pytest.mark.parametrize(
    "path", sorted(TEMPLATES.glob("kuberay-*/network-policy.yaml")), ids=lambda p: p.parent.name
)
def test_ray_reaches_pods_and_addresses_on_every_network_plugin(path: Path) -> None:
    """Cilium matches no pod by an ipBlock, and IPv6 has no address of 0.0.0.0/0."""
    policies = list(yaml.safe_load_all(path.read_text()))
    rules = [rule for one in policies for rule in one["spec"].get("egress", [])]
    peers = [peer for rule in rules for peer in rule.get("to", [])]
    assert {"namespaceSelector": {}} in peers
    blocks = {
        peer["ipBlock"]["cidr"]: peer["ipBlock"]["except"] for peer in peers if "ipBlock" in peer
    }
    assert blocks["0.0.0.0/0"] == ["169.254.0.0/16"]
    assert blocks["::/0"] == ["fe80::/10", "fd00:ec2::254/128"]


def test_gpu_folder_has_the_same_workers() -> None:
    """So that each folder can be copied alone."""
    for name in ("worker.yaml", "kustomization.yaml", "network-policy.yaml"):
        one, other = (
            TEMPLATES / folder / name for folder in ("kuberay-existing-cluster", "kuberay-gpu")
        )
        assert one.read_text() == other.read_text()


def test_folder_for_shared_clusters_has_the_same_workers_as_the_one_per_run() -> None:
    for name in ("worker.yaml", "quota.yaml", "kustomization.yaml"):
        one, other = (TEMPLATES / folder / name for folder in ("kuberay-per-run", "kuberay-shared"))
        assert one.read_text() == other.read_text()


def test_worker_runs_as_two() -> None:
    (deployment,) = (
        manifest
        for path, manifest in manifests()
        if path.parent.name == "kuberay-existing-cluster" and manifest["kind"] == "Deployment"
    )
    assert deployment["spec"]["replicas"] == 2


@pytest.mark.parametrize(
    "folder", [path.parent for path in sorted(TEMPLATES.rglob("kustomization.yaml"))], ids=str
)
def test_folder_is_put_together_by_kustomize(folder: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    objects = [document for document in yaml.safe_load_all(built.stdout) if document]
    made = {(o["kind"], o["metadata"]["name"]) for o in objects}
    assert {o["metadata"].get("namespace") for o in objects} == {"ray"}
    # What it refers to is in it, or is a Secret that the README has made before.
    used = re.findall(r"configMap(?:KeyRef)?:\n\s+(?:key: \S+\n\s+)?name: (\S+)", built.stdout)
    assert {("ConfigMap", name) for name in used} <= made


CLUSTERS = [
    pytest.param(path, manifest, id=path.parent.name)
    for path, manifest in manifests()
    if manifest["kind"] == "RayCluster"
]


@pytest.mark.parametrize(("path", "cluster"), CLUSTERS)
def test_cluster_asks_for_a_token_and_all_that_join_it_have_it(
    path: Path, cluster: dict[str, Any]
) -> None:
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    name = cluster["metadata"]["name"]
    own = {"secretKeyRef": {"name": name, "key": "auth_token"}}
    for other, manifest in manifests():
        if other.parent != path.parent:
            continue
        for container in containers(manifest):
            if container["name"] in ("ray-head", "ray-worker"):
                continue  # KubeRay gives it to these
            env = {v["name"]: v.get("value") or v.get("valueFrom") for v in container["env"]}
            assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN"]) == ("token", own)


@pytest.mark.parametrize(("path", "cluster"), CLUSTERS)
def test_no_container_in_which_drivers_run_has_an_account(
    path: Path, cluster: dict[str, Any]
) -> None:
    """The autoscaler needs one; a deployment can put a driver beside it, on the head."""
    spec = cluster["spec"]
    pods = [g["template"]["spec"] for g in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert {pod["automountServiceAccountToken"] for pod in pods} == {False}
    accounts = {
        volume["name"]
        for pod in pods
        for volume in pod.get("volumes", [])
        if "serviceAccountToken" in str(volume.get("projected"))
    }
    mounted = {m["name"] for c in containers(cluster) for m in c.get("volumeMounts", [])}
    assert not accounts & mounted
    if spec.get("enableInTreeAutoscaling"):
        (mount,) = spec["autoscalerOptions"]["volumeMounts"]
        assert {mount["name"]} == accounts
        assert spec["autoscalerOptions"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(("path", "manifest"), OBJECTS)
def test_every_pod_has_a_network_policy(path: Path, manifest: dict[str, Any]) -> None:
    name = manifest["metadata"]["name"]
    labels = {
        "RayCluster": {"ray.io/cluster": name},
        "Deployment": {"app.kubernetes.io/name": name},
    }.get(manifest["kind"])
    policies = [
        policy["spec"]
        for other, policy in manifests()
        if policy["kind"] == "NetworkPolicy" and other.parent == path.parent
    ]
    if labels is not None:
        chosen = [p for p in policies if p["podSelector"]["matchLabels"] == labels]
        assert chosen, f"{path.parent.name} has none for {labels}"
        assert "Ingress" in chosen[0]["policyTypes"]
        # An empty peer would let everyone in.
        assert all(rule.get("from") for rule in chosen[0].get("ingress", []))
