"""What KubeRay's operator refuses beyond the schema (`utils/validation.go`, its test beside it)."""

import re
from typing import Any

Document = dict[str, Any]
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = 53


def problem_with_metadata(name: str) -> str | None:
    # ValidateRayClusterMetadata.
    if len(name) > _LONGEST_NAME:
        return f"RayCluster name should be no more than {_LONGEST_NAME} characters"
    if not _DNS_1035.fullmatch(name):
        return (
            "RayCluster name should be a valid DNS1035 label: [a DNS-1035 label must consist of "
            "lower case alphanumeric characters or '-', start with an alphabetic character, and "
            "end with an alphanumeric character]"
        )
    return None


def problem_with_spec(spec: Document) -> str | None:
    # ValidateRayClusterSpec, in its order; what a worker's manifest cannot have is left out.
    head = spec["headGroupSpec"]
    if not head["template"]["spec"].get("containers"):
        return "headGroupSpec should have at least one container"
    if problem := _problem_with_resources("Head", head):
        return problem
    for group in spec.get("workerGroupSpecs", []):
        if problem := _problem_with_group(group, bool(spec.get("enableInTreeAutoscaling"))):
            return problem
    if spec.get("authOptions", {}).get("mode") == "token":
        return _problem_with_version(spec.get("rayVersion", ""))
    return None


def _problem_with_group(group: Document, autoscales: bool) -> str | None:
    name = group["groupName"]
    if not group["template"]["spec"].get("containers"):
        return "workerGroupSpec should have at least one container"
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if not autoscales and (least is None or most is None):
        return (
            f"worker group {name} must set both minReplicas and maxReplicas when autoscaling is "
            "disabled"
        )
    if least is not None and most is not None and least > most:
        return f"worker group {name} has minReplicas {least} greater than maxReplicas {most}"
    return _problem_with_resources(name, group)


def _problem_with_resources(name: str, group: Document) -> str | None:
    # validateRayGroupResources, validateRayGroupLabels.
    parameters = group.get("rayStartParams", {})
    if group.get("resources") and any(
        parameters.get(key) for key in ("num-cpus", "num-gpus", "memory", "resources")
    ):
        return (
            "resource fields should not be set in both rayStartParams and Resources for "
            f"{name} group; please use only one"
        )
    if "labels" in parameters:
        return (
            f"rayStartParams['labels'] is not supported for {name} group; please use the "
            "top-level Labels field instead"
        )
    return None


def _problem_with_version(version: str) -> str | None:
    if not version:
        return (
            "authOptions.mode is 'token' but RayVersion was not specified. Ray version 2.52.0 or "
            "later is required"
        )
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers is None:
        return f"authOptions.mode is 'token' but RayVersion format is invalid: {version}"
    if (int(numbers[1]), int(numbers[2])) < (2, 52):
        return f"authOptions.mode is 'token' but minimum Ray version is 2.52.0, got {version}"
    return None
