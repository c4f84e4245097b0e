"""What a driver or a task asks for, what a cluster's nodes have, and whether the two fit.

The one model of a node's resources and labels: the worker fills it from Ray's dashboard, the
task runner from `ray.nodes()`. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

_GIB = 1024**3
# Ray counts node addresses as resources; no job can ask for object store memory.
_INTERNAL = ("node:", "object_store_memory")


@dataclass(frozen=True)
class Asked:
    """What a driver or a task asks of the node that runs it.

    Attributes:
        resources: Amounts by Ray's names: `CPU`, `GPU`, `memory` in bytes, custom ones.
        labels: Conditions on the node's labels, as in Ray's label selectors.
        environment: The parts of a job's `runtime_env` that Ray fetches or installs.
    """

    resources: Mapping[str, float] = field(default_factory=dict[str, float])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    environment: tuple[str, ...] = ()

    def __str__(self) -> str:
        asked = [in_words(self.resources)] if self.resources else []
        asked += [f"{key}={value}" for key, value in self.labels.items()]
        return ", ".join(asked) or "nothing"


@dataclass(frozen=True)
class Node:
    """A node that is alive.

    Attributes:
        total: Its resources by Ray's names, in use or not.
        free: The part that is free; None where the cluster does not say.
        labels: Its labels.
    """

    total: Mapping[str, float]
    free: Mapping[str, float] | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    def could_take(self, asked: Asked) -> bool:
        """Return whether the node would run it if it were idle."""
        return _covers(self.total, asked.resources) and _has_labels(self.labels, asked.labels)

    def can_take(self, asked: Asked) -> bool | None:
        """Return whether the node has room now; None if its free resources are not known."""
        if not self.could_take(asked):
            return False
        return None if self.free is None else _covers(self.free, asked.resources)


@dataclass(frozen=True)
class ClusterResources:
    """What a cluster has.

    Attributes:
        nodes: Its nodes that are alive.
    """

    nodes: tuple[Node, ...]

    def can_ever_run(self, asked: Asked) -> bool:
        """Return whether one of the nodes would run it if it were idle."""
        return any(node.could_take(asked) for node in self.nodes)

    def total(self, names: Mapping[str, float]) -> dict[str, float]:
        """Return what all nodes together have of the named resources."""
        return {name: sum(node.total.get(name, 0) for node in self.nodes) for name in names}

    def free(self, names: Mapping[str, float]) -> dict[str, float] | None:
        """Return the part of it that is free; None if a node does not say."""
        if any(node.free is None for node in self.nodes):
            return None
        return {name: sum((n.free or {}).get(name, 0) for n in self.nodes) for name in names}

    def largest(self, names: Mapping[str, float]) -> dict[str, float]:
        """Return the most that one node has, for each of the named resources."""
        return {
            name: max((node.total.get(name, 0) for node in self.nodes), default=0) for name in names
        }


def in_words(resources: Mapping[str, float]) -> str:
    """Return amounts as text: `2 CPU, 1.5 GiB memory`."""
    return ", ".join(
        f"{amount / _GIB:.3g} GiB memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in resources.items()
        if not name.startswith(_INTERNAL)
    )


def _covers(has: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(has.get(name, 0) >= amount for name, amount in wanted.items())


def _has_labels(has: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(_matches(has.get(key), condition) for key, condition in wanted.items())


def _matches(value: str | None, condition: str) -> bool:
    """Apply a condition as Ray does: `x`, `!x`, `in(x,y)`, `!in(x,y)` (label selectors, 2.60)."""
    wanted = condition.removeprefix("!")
    options = wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted]
    found = value in [option.strip() for option in options]
    return found != condition.startswith("!")


def nodes_in_words(count: int) -> str:
    """Return a number of nodes with its noun: `1 node`, `2 nodes`."""
    return "1 node" if count == 1 else f"{count} nodes"
