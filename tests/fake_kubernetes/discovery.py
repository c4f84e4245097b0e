"""Discovery: which groups, versions and resources the fake API server serves."""

from typing import Any

Document = dict[str, Any]
_VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"}
_VERBS = ["create", "delete", "get", "list", "patch"]
_CORE = {
    "pods": ("Pod", "po"),
    "events": ("Event", "ev"),
    "secrets": ("Secret", ""),
    "services": ("Service", "svc"),
    "resourcequotas": ("ResourceQuota", "quota"),
}


def answer(path: str, *, has_kuberay: bool) -> Document | None:
    """Return the answer to a request for discovery; None for any other path."""
    if path == "/version":
        return dict(_VERSION)
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [_group("authorization.k8s.io"), *([_group("ray.io")] if has_kuberay else [])]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/api/v1":
        return _resources("v1", [_resource(n, k, short) for n, (k, short) in _CORE.items()])
    if path == "/apis/authorization.k8s.io/v1":
        return _resources("authorization.k8s.io/v1", [])
    if path == "/apis/ray.io/v1" and has_kuberay:
        return _resources("ray.io/v1", [_resource("rayclusters", "RayCluster", "")])
    return None


def _group(name: str) -> Document:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _resources(version: str, resources: list[Document]) -> Document:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": resources,
    }


def _resource(name: str, kind: str, short: str) -> Document:
    return {
        "name": name,
        "singularName": kind.lower(),
        "namespaced": True,
        "kind": kind,
        "verbs": _VERBS,
        "shortNames": [short] if short else [],
    }
