"""`ServedFields`: which fields of a RayCluster the installed custom resource definition has."""

import json
from dataclasses import dataclass
from typing import Any, cast

# Deep enough for `spec.authOptions.secretName` and `spec.workerGroupSpecs.idleTimeoutSeconds`.
_DEPTH = 4
# Thousands of fields each, and Kubernetes' own: they say nothing about KubeRay's release.
_LEFT_OUT = frozenset({"template", "headService", "resources"})


@dataclass(frozen=True)
class ServedFields:
    """Names of fields, such as `spec.authOptions.mode`. Elements of lists have their list's name.

    Attributes:
        names: All fields down to the fourth level, without those of pod templates.
    """

    names: frozenset[str]

    def has(self, field: str) -> bool:
        """Return whether the API server stores a field. It drops others, or refuses them."""
        return field in self.names


def fields_in(openapi: bytes) -> ServedFields | None:
    """Return the fields of RayCluster in an answer of `/openapi/v3/apis/ray.io/v1`.

    The answer has megabytes: run it in a thread. None if it has no schema of RayCluster.

    Raises:
        ValueError: It is no OpenAPI document.
    """
    try:
        document = json.loads(openapi)
        schemas = cast("dict[str, dict[str, Any]]", document["components"]["schemas"])
        for schema in schemas.values():
            for kind in schema.get("x-kubernetes-group-version-kind", []):
                if (kind["group"], kind["version"], kind["kind"]) == ("ray.io", "v1", "RayCluster"):
                    names: set[str] = set()
                    _collect(schema, "", _DEPTH, names)
                    return ServedFields(frozenset(names))
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError("not an OpenAPI document") from exc
    return None


def _collect(schema: dict[str, Any], path: str, depth: int, names: set[str]) -> None:
    while schema.get("type") == "array":
        schema = schema.get("items", {})
    if depth == 0:
        return
    for name, inner in schema.get("properties", {}).items():
        names.add(f"{path}{name}")
        if name not in _LEFT_OUT:
            _collect(inner, f"{path}{name}.", depth - 1, names)
