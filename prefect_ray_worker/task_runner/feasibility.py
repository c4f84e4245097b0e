"""`Feasibility`: warns of a task that no node can run, which Ray lets wait in silence."""

import time
from collections.abc import Mapping
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.tasks import Task

from prefect_ray_worker.task_runner.options import DEFAULTS, options_for

_FRESH_SECONDS = 10.0


class Feasibility:
    """Compares what tasks ask for with what the nodes have; warns once for each request."""

    def __init__(self) -> None:
        self._nodes: list[Mapping[str, float]] = []
        self._looked = float("-inf")
        self._warned: set[str] = set()

    def check(self, task: Task[Any, Any]) -> None:
        """Warn on the run if no node that is there now could ever run a task."""
        options = options_for(task)
        if options == DEFAULTS:
            return
        request = _request(options)
        key = repr(sorted(request.items()))
        if key in self._warned or any(_holds(node, request) for node in self._present()):
            return
        self._warned.add(key)
        lacking = ", ".join(
            f"{name} {amount:g} (most on one node: {max(n.get(name, 0) for n in self._nodes):g})"
            for name, amount in request.items()
            if amount > max((n.get(name, 0) for n in self._nodes), default=0)
        )
        _logger().warning(
            "No node of the Ray cluster can run task %r: it asks for %s. It waits until such a "
            "node joins, an autoscaler may start one; otherwise ask for less in remote_options.",
            task.name,
            lacking or ", ".join(f"{k} {v:g}" for k, v in request.items()) + " on one node",
        )

    def _present(self) -> list[Mapping[str, float]]:
        if time.monotonic() - self._looked > _FRESH_SECONDS:
            import ray

            self._nodes = [n["Resources"] for n in ray.nodes() if n.get("Alive", n.get("alive"))]
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


def _holds(node: Mapping[str, float], request: Mapping[str, float]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in request.items())


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("task_runner.ray")
