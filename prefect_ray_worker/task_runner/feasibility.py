"""`Feasibility`: warn of a task that no node can run, which Ray would leave waiting in silence."""

import time
from collections.abc import Mapping
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.tasks import Task

from prefect_ray_worker.shared.resources import Asked, ClusterResources, Node
from prefect_ray_worker.task_runner.options import DEFAULTS, options_for

_FRESH_SECONDS = 10.0


class Feasibility:
    """Compare what tasks ask for with what the nodes have; warn once for each request."""

    def __init__(self) -> None:
        self._cluster = ClusterResources(())
        self._looked = float("-inf")
        self._warned: set[str] = set()

    def check(self, task: Task[Any, Any]) -> None:
        """Warn on the run if no present node could ever run a task."""
        options = options_for(task)
        if options == DEFAULTS or options.get("fallback_strategy"):
            return
        asked = _asked_for(options)
        key = repr((sorted(asked.resources.items()), sorted(asked.labels.items())))
        if key in self._warned or self._present().can_ever_run(asked):
            return
        self._warned.add(key)
        _logger().warning(
            "No node of the Ray cluster can run task %r: it asks for %s. It waits until such a "
            "node joins; an autoscaler may start one. Otherwise ask for less in remote_options.",
            task.name,
            _lacking(asked, self._cluster),
        )

    def _present(self) -> ClusterResources:
        if time.monotonic() - self._looked > _FRESH_SECONDS:
            import ray

            self._cluster = ClusterResources(
                tuple(
                    Node(node["Resources"], labels=node.get("Labels") or {})
                    for node in ray.nodes()
                    if node.get("Alive", node.get("alive"))
                )
            )
            self._looked = time.monotonic()
        return self._cluster


def _asked_for(options: Mapping[str, Any]) -> Asked:
    resources = dict(options.get("resources") or {})
    for option, name in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
        resources[name] = options.get(option) or 0
    kind = options.get("accelerator_type")
    if kind:
        resources[f"accelerator_type:{kind}"] = 0.001
    return Asked(
        resources={name: amount for name, amount in resources.items() if amount > 0},
        labels=dict(options.get("label_selector") or {}),
    )


def _lacking(asked: Asked, cluster: ClusterResources) -> str:
    most = cluster.largest(asked.resources)
    lacking = [
        f"{name} {amount:g} (most on one node: {most[name]:g})"
        for name, amount in asked.resources.items()
        if amount > most[name]
    ]
    if not cluster.can_ever_run(Asked(labels=asked.labels)):
        lacking += [f"a node labelled {key}={value}" for key, value in asked.labels.items()]
    return ", ".join(lacking) or "a combination of resources and labels that no node has"


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("task_runner.ray")
