"""The checks of a custom resource definition: its structural schema, strict fields, defaults.

No CEL: KubeRay's own rules beyond the schema are the operator's (`operator.py`).
"""

import functools
import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tests.fake_kubernetes import statuses

Document = dict[str, Any]
CRD = Path(__file__).parents[3] / "shared" / "data" / "kuberay-crds" / "ray.io_rayclusters.yaml"
MISSING_CRD = f"KubeRay's custom resource definition is not at {CRD}"

_METADATA = {
    "annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp",
    "finalizers", "generateName", "generation", "labels", "managedFields", "name", "namespace",
    "ownerReferences", "resourceVersion", "selfLink", "uid",
}  # fmt: skip
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
Cause = tuple[str, str, str]
ANY_SPEC: Document = {
    "type": "object",
    "required": ["spec"],
    "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
}
"""A schema that takes every spec."""


@functools.cache
def raycluster_schema() -> Document:
    """Return the schema of `ray.io/v1` RayCluster, from KubeRay's own file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = yaml.load(CRD.read_text(), loader)
    versions = document["spec"]["versions"]
    return next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]


def without(schema: Document, path: str) -> Document:
    """Return a schema without a field, such as `spec.authOptions`: an older release's."""
    schema = deepcopy(schema)
    *parents, last = path.split(".")
    inner = schema
    for part in parents:
        inner = inner["properties"][part]
    del inner["properties"][last]
    return schema


def openapi(schema: Document) -> str:
    """Return the answer of `/openapi/v3/apis/ray.io/v1`."""
    kind = {"group": "ray.io", "kind": "RayCluster", "version": "v1"}
    served = {**schema, "x-kubernetes-group-version-kind": [kind]}
    schemas = {"io.ray.v1.RayCluster": served}
    return json.dumps({"openapi": "3.0.0", "paths": {}, "components": {"schemas": schemas}})


class Checker:
    """Checks RayClusters against a schema.

    Args:
        schema: Of the custom resource definition.
    """

    def __init__(self, schema: Document) -> None:
        self.schema = schema

    def checked(self, document: Document, *, is_strict: bool) -> Document:
        """Return the document as it is stored: unknown fields dropped, defaults filled in.

        Raises:
            Refusal: 400 for an unknown field if `is_strict`, 422 for a wrong value.
        """
        document = deepcopy(document)
        unknown = [f"metadata.{k}" for k in document.get("metadata", {}) if k not in _METADATA]
        causes: list[Cause] = []
        for key, value in list(document.items()):
            if key in ("apiVersion", "kind", "metadata", "status"):
                continue
            inner = self.schema["properties"].get(key)
            if inner is None:
                unknown.append(key)
                del document[key]
            else:
                document[key] = _walk(inner, value, key, unknown, causes)
        for key in self.schema.get("required", []):
            if key not in document:
                causes.append((key, "FieldValueRequired", "Required value"))
        if is_strict and unknown:
            raise statuses.strict("rayclusters", sorted(unknown))
        if causes:
            raise statuses.invalid("rayclusters", document["metadata"].get("name", ""), causes)
        return document


def _walk(schema: Document, value: Any, path: str, unknown: list[str], causes: list[Cause]) -> Any:
    if value is None and schema.get("nullable"):
        return None
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str) or isinstance(value, bool):
            causes.append(_wrong_type(path, "integer or string", value))
        return value
    wanted = schema.get("type")
    if wanted is None:
        return value
    is_bool_for_number = isinstance(value, bool) and wanted in ("integer", "number")
    if not isinstance(value, _TYPES[wanted]) or is_bool_for_number:
        causes.append(_wrong_type(path, wanted, value))
        return value
    if wanted == "object":
        return _walk_object(schema, value, path, unknown, causes)
    if wanted == "array":
        return [
            _walk(schema.get("items", {}), item, f"{path}[{i}]", unknown, causes)
            for i, item in enumerate(value)
        ]
    causes.extend(_scalar_causes(schema, value, path))
    return value


def _walk_object(
    schema: Document, value: Document, path: str, unknown: list[str], causes: list[Cause]
) -> Document:
    properties = schema.get("properties")
    others = schema.get("additionalProperties")
    result: Document = {}
    for key, item in value.items():
        if properties is not None and key in properties:
            if item is not None or properties[key].get("nullable"):
                result[key] = _walk(properties[key], item, f"{path}.{key}", unknown, causes)
        elif others is not None or schema.get("x-kubernetes-preserve-unknown-fields"):
            inner = others if isinstance(others, dict) else {}
            result[key] = _walk(inner, item, f"{path}.{key}", unknown, causes)
        else:
            unknown.append(f"{path}.{key}")
    for key, inner in (properties or {}).items():
        if key not in result and "default" in inner:
            result[key] = deepcopy(inner["default"])
    for key in schema.get("required", []):
        if key not in result:
            causes.append((f"{path}.{key}", "FieldValueRequired", "Required value"))
    return result


def _scalar_causes(schema: Document, value: Any, path: str) -> list[Cause]:
    found: list[Cause] = []
    body = f'Invalid value: "{value}": {path} in body should'
    if "enum" in schema and value not in schema["enum"]:
        names = ", ".join(f'"{name}"' for name in schema["enum"])
        message = f'Unsupported value: "{value}": supported values: {names}'
        found.append((path, "FieldValueNotSupported", message))
    if "pattern" in schema and not re.search(schema["pattern"], str(value)):
        found.append((path, "FieldValueInvalid", f"{body} match '{schema['pattern']}'"))
    if "minimum" in schema and value < schema["minimum"]:
        message = f"{body} be greater than or equal to {schema['minimum']}"
        found.append((path, "FieldValueInvalid", message))
    if "maxLength" in schema and len(str(value)) > schema["maxLength"]:
        message = f"Too long: may not be more than {schema['maxLength']} bytes"
        found.append((path, "FieldValueTooLong", message))
    if len(str(value)) < schema.get("minLength", 0):
        message = f"{body} be at least {schema['minLength']} chars long"
        found.append((path, "FieldValueInvalid", message))
    return found


def _wrong_type(path: str, wanted: str, value: Any) -> Cause:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer"}
    name = names.get(type(value), "null" if value is None else "number")
    message = f'Invalid value: "{name}": {path} in body must be of type {wanted}: "{name}"'
    return path, "FieldValueTypeInvalid", message
