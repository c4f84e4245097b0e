"""The job variable `cluster_source`: clusters that a source of another package makes for runs.

Pure. Which fields there are besides those here is that source's own to say, so they are checked
where it is loaded. Also merges a run's `kuberay` and `cluster_source` over the pool's.
"""

from collections.abc import Mapping
from typing import Any, cast

from prefect.utilities.collections import set_in_dict

TYPE = "type"
START_TIMEOUT = "start_timeout_seconds"
DEFAULT_START_TIMEOUT = 900.0
KEEP_FAILED = "keep_failed_seconds"
COMMON_FIELDS = (TYPE, START_TIMEOUT, KEEP_FAILED)
"""Fields of every source; all others are its own."""

RESERVED_TYPES = frozenset({"address", "http", "https", "kuberay", "local"})
"""What a source cannot be called: references to clusters begin with these."""

_MERGED = ("kuberay", "cluster_source")


def check_cluster_source(value: dict[str, Any]) -> dict[str, Any]:
    """Return a `cluster_source` whose common fields can work.

    Raises:
        ValueError: One cannot; the message names it.
    """
    type_ = value.get(TYPE)
    if not isinstance(type_, str) or not type_:
        raise ValueError('names no type. Set it to the name of an installed source: {"type": …}')
    if not type_.isidentifier() or type_ in RESERVED_TYPES:
        raise ValueError(
            "has a type that no source can have: letters, digits and underscores, and none of "
            f"{', '.join(sorted(RESERVED_TYPES))}. Set it to the name of an installed source"
        )
    for name, least in ((START_TIMEOUT, 1), (KEEP_FAILED, 0)):
        seconds = value.get(name, least)
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or seconds < least:
            raise ValueError(f"has a {name} that is not a number. Set it to {least} or more")
    return value


def over_pool_default(
    base_job_template: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return job variables whose `kuberay` and `cluster_source` are merged over the pool's.

    Prefect merges `env` only: without this, an override of `kuberay.image` would replace the whole
    `kuberay` of the pool (`BaseJobConfiguration.from_template_and_values`, 3.8.8).

    Args:
        base_job_template: Of the work pool.
        values: The job variables of the deployment and the run.
    """
    properties = base_job_template.get("variables", {}).get("properties", {})
    merged = dict(values)
    for variable in _MERGED:
        merged = _over(properties.get(variable, {}).get("default"), merged, variable)
    return merged


def _over(default: object, values: dict[str, Any], variable: str) -> dict[str, Any]:
    dotted = {key: value for key, value in values.items() if key.startswith(f"{variable}.")}
    if not dotted and not isinstance(values.get(variable), dict):
        return values
    merged = default
    of_paths: dict[str, Any] = {}
    for key, value in dotted.items():
        set_in_dict(of_paths, key, value)
    # As for Prefect's own: a nested value wins over a dotted one.
    for override in (of_paths.get(variable), values.get(variable)):
        if isinstance(override, dict):
            above = cast("dict[str, Any]", override)
            is_another = variable == "cluster_source" and _is_another_source(merged, above)
            merged = above if is_another else _merged(merged, above)
    rest = {key: value for key, value in values.items() if key not in dotted}
    return {**rest, variable: merged}


def _merged(below: object, above: dict[str, Any]) -> dict[str, Any]:
    # A block, or a reference to one, is not merged with anything.
    if not isinstance(below, dict) or "$ref" in below or "$ref" in above:
        return above
    result = dict(cast("dict[str, Any]", below))
    for key, value in above.items():
        before = result.get(key)
        result[key] = _merged(before, value) if isinstance(value, dict) else value
    return result


def _is_another_source(below: object, above: Mapping[str, Any]) -> bool:
    """Return whether an override names another source than the pool: their fields have no relation.

    Only the field of the variable itself does so. Below it, `type` is a key like any other.
    """
    if not isinstance(below, dict):
        return True
    sources = {value[TYPE] for value in (below, above) if isinstance(value.get(TYPE), str)}
    return len(sources) > 1
