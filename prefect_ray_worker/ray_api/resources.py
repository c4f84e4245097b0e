"""Read a cluster's resources from Ray's answers, and a driver's request from a submission.

Both become types of `shared/resources.py`. Two light endpoints of the dashboard (Ray 2.60):
`/api/v0/nodes` has each node's resources and labels, `/api/cluster_status` the part in use. The
autoscaler's monitor writes the latter every 5 s; with the monitor off, or version 2 of it, there
is none.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from prefect_ray_worker.ray_api.models import JobSubmitRequest
from prefect_ray_worker.shared.resources import Asked, ClusterResources, Node

_INSTALLED = ("pip", "uv", "conda", "image_uri", "container", "working_dir", "py_modules")
# Named after a whole SHA-256; what `ray job submit` uploads has a shorter name.
_OUR_PACKAGE = re.compile(r"gcs://_ray_pkg_([0-9a-f]{64}|bundle_[0-9a-f]{32})\.zip")


class _ListedNode(BaseModel):
    node_id: str = ""
    node_ip: str | None = None
    state: str = "ALIVE"
    resources_total: dict[str, float] = Field(default_factory=dict[str, float])
    labels: dict[str, str] | None = None


class _Listing(BaseModel):
    result: list[_ListedNode]


class _Wrapped(BaseModel):
    result: _Listing


class NodesAnswer(BaseModel):
    """The answer of `GET /api/v0/nodes`."""

    data: _Wrapped


class _Report(BaseModel):
    # node id -> resource -> used and total
    usage_by_node: dict[str, dict[str, tuple[float, float]]] | None = Field(
        default=None, alias="usageByNode"
    )


class _Status(BaseModel):
    report: _Report | None = Field(default=None, alias="loadMetricsReport")


class _StatusData(BaseModel):
    status: _Status | None = Field(default=None, alias="clusterStatus")


class StatusAnswer(BaseModel):
    """The answer of `GET /api/cluster_status`."""

    data: _StatusData

    @property
    def used(self) -> Mapping[str, Mapping[str, float]]:
        """Amounts in use by node id and resource, with names as this endpoint writes them."""
        report = self.data.status.report if self.data.status is not None else None
        by_node = (report.usage_by_node if report is not None else None) or {}
        return {
            node: {name: used for name, (used, _) in resources.items()}
            for node, resources in by_node.items()
        }


def combined(nodes: NodesAnswer, status: StatusAnswer | None) -> ClusterResources:
    """Return the model that both answers make together.

    Args:
        nodes: The nodes and their totals.
        status: The amounts in use; None if the cluster does not report them.
    """
    used = status.used if status is not None else {}
    return ClusterResources(
        tuple(
            Node(node.resources_total, _free(node, used.get(node.node_id)), node.labels or {})
            for node in nodes.data.result.result
            if node.state == "ALIVE"
        )
    )


def asked_for(request: JobSubmitRequest) -> Asked:
    """Return what a submission asks for its driver."""
    resources = {
        "CPU": request.entrypoint_num_cpus,
        "GPU": request.entrypoint_num_gpus,
        "memory": request.entrypoint_memory,
        **(request.entrypoint_resources or {}),
    }
    return Asked(
        resources={name: amount for name, amount in resources.items() if amount},
        labels=request.entrypoint_label_selector or {},
        environment=_environment(request.runtime_env),
    )


def _free(node: _ListedNode, used: Mapping[str, float] | None) -> dict[str, float] | None:
    if used is None:
        return None
    return {
        name: total - used.get(_in_camel_case(name), 0.0)
        for name, total in node.resources_total.items()
    }


def _in_camel_case(name: str) -> str:
    """Write a name as `/api/cluster_status` does, custom resources too (`to_camel_case`, 2.60)."""
    first, *others = name.split("_")
    return first + "".join(part.title() for part in others)


def _environment(runtime_env: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts that take time to set up; our own package takes next to none."""
    parts: list[str] = []
    for name in _INSTALLED:
        value = runtime_env.get(name)
        if name == "py_modules":
            value = [uri for uri in value or [] if not _OUR_PACKAGE.fullmatch(str(uri))]
        if value:
            parts.append(name)
    return tuple(parts)
