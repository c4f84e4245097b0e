"""The smallest RayCluster that KubeRay takes."""

from typing import Any


def a_manifest(name: str, namespace: str = "ray", **spec: Any) -> dict[str, Any]:
    """Return a manifest with one head; keywords replace or add fields of its spec."""
    container = {
        "name": "ray-head",
        "image": "rayproject/ray:2.60.0",
        "ports": [{"name": "gcs-server", "containerPort": 6379}, _DASHBOARD],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "test"}},
        "spec": {
            "rayVersion": "2.60.0",
            "headGroupSpec": {
                "rayStartParams": {},
                "template": {"spec": {"containers": [container]}},
            },
            **spec,
        },
    }


_DASHBOARD = {"name": "dashboard", "containerPort": 8265}
