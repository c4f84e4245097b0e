"""The nodes of the fake Ray, as its dashboard shows them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4


def _new_node_id() -> str:
    return f"{uuid4().hex}{uuid4().hex[:24]}"


@dataclass
class FakeNode:
    """A node.

    Attributes:
        total: Its resources.
        used: What of them is in use; what is not named is free.
        labels: Its labels.
        state: `ALIVE` or `DEAD`.
        ip: Its address.
    """

    total: dict[str, float]
    used: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    state: str = "ALIVE"
    node_id: str = field(default_factory=_new_node_id)
    ip: str = "127.0.0.1"


def listing(nodes: Iterable[FakeNode]) -> dict[str, Any]:
    """Return the answer of `/api/v0/nodes`."""
    rows = [
        {
            "node_id": node.node_id,
            "node_ip": node.ip,
            "is_head_node": False,
            "state": node.state,
            "state_message": None,
            "node_name": "127.0.0.1",
            "resources_total": {**node.total, "node:127.0.0.1": 1.0},
            "labels": {**node.labels, "ray.io/node-id": node.node_id},
        }
        for node in nodes
    ]
    found = {"total": len(rows), "num_after_truncation": len(rows), "num_filtered": len(rows)}
    result = {**found, "result": rows, "partial_failure_warning": "", "warnings": None}
    return {"result": True, "msg": "", "data": {"result": result}}


def summary(nodes: Iterable[FakeNode], agent_port: int | None) -> dict[str, Any]:
    """Return the answer of `/nodes?view=summary`; Ray 2.60 has the agents' port in it."""
    port = {} if agent_port is None else {"dashboardAgentListenPort": agent_port}
    rows = [
        {"ip": n.ip, "raylet": {"nodeId": n.node_id, "nodeManagerAddress": n.ip, **port}}
        for n in nodes
    ]
    return {"result": True, "msg": "Node summary fetched.", "data": {"summary": rows}}


def status(nodes: Iterable[FakeNode], *, has_monitor: bool) -> dict[str, Any]:
    """Return the answer of `/api/cluster_status`; Ray writes all its names in camel case."""
    usage = {
        node.node_id: {
            _camel_case(name): [node.used.get(name, 0.0), amount]
            for name, amount in node.total.items()
        }
        for node in nodes
        if node.state == "ALIVE"
    }
    report = {"loadMetricsReport": {"usageByNode": usage}, "time": 1795428811.29}
    data = {
        "autoscalingStatus": None,
        "autoscalingError": None,
        "clusterStatus": report if has_monitor else None,
    }
    return {"result": True, "msg": "Got cluster status.", "data": data}


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.title() for part in others)
