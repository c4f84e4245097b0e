"""`Feasibility`: warns of a task that no node can run, which Ray lets wait in silence."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.tasks import Task

from prefect_ray_worker.task_runner.options import DEFAULTS, options_for

_FRESH_SECONDS = 10.0


@dataclass(frozen=True)
class Node:
    """What a node has.

    Attributes:
        resources: All of its resources, in use or not.
        labels: Its labels.
    """

    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def can_hold(self, request: Mapping[str, float], selector: Mapping[str, str]) -> bool:
        """Say whether a task that asks for this could run here, were the node idle."""
        enough = all(self.resources.get(name, 0) >= amount for name, amount in request.items())
        return enough and all(self._matches(*condition) for condition in selector.items())

    def _matches(self, key: str, wanted: str) -> bool:
        # `value`, `in(a, b)`, and both with a `!` before them (Ray 2.60).
        plain = wanted.removeprefix("!")
        values = plain.removeprefix("in(").removesuffix(")").split(",")
        return (self.labels.get(key) in [v.strip() for v in values]) == (plain == wanted)


class Feasibility:
    """Compares what tasks ask for with what the nodes have; warns once for each request."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._looked = float("-inf")
        self._warned: set[str] = set()

    def check(self, task: Task[Any, Any]) -> None:
        """Warn on the run if no node that is there now could ever run a task."""
        options = options_for(task)
        if options == DEFAULTS or options.get("fallback_strategy"):
            return
        request, selector = _request(options), dict(options.get("label_selector") or {})
        key = repr((sorted(request.items()), sorted(selector.items())))
        if key in self._warned or any(n.can_hold(request, selector) for n in self._present()):
            return
        self._warned.add(key)
        _logger().warning(
            "No node of the Ray cluster can run task %r: it asks for %s. It waits until such a "
            "node joins, an autoscaler may start one; otherwise ask for less in remote_options.",
            task.name,
            self._lacking(request, selector),
        )

    def _lacking(self, request: Mapping[str, float], selector: Mapping[str, str]) -> str:
        most = {name: max(n.resources.get(name, 0) for n in self._nodes) for name in request}
        lacking = [
            f"{name} {amount:g} (most on one node: {most[name]:g})"
            for name, amount in request.items()
            if amount > most[name]
        ]
        if not any(n.can_hold({}, selector) for n in self._nodes):
            lacking += [f"a node labelled {key}={value}" for key, value in selector.items()]
        return ", ".join(lacking) or "a combination of resources and labels that no node has"

    def _present(self) -> list[Node]:
        if time.monotonic() - self._looked > _FRESH_SECONDS:
            import ray

            self._nodes = [
                Node(node["Resources"], node.get("Labels") or {})
                for node in ray.nodes()
                if node.get("Alive", node.get("alive"))
            ]
            self._looked = time.monotonic()
        return self._nodes


def _request(options: Mapping[str, Any]) -> dict[str, float]:
    request = dict(options.get("resources") or {})
    for option, name in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
        request[name] = options.get(option) or 0
    kind = options.get("accelerator_type")
    if kind:
        request[f"accelerator_type:{kind}"] = 0.001
    return {name: amount for name, amount in request.items() if amount > 0}


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("task_runner.ray")
