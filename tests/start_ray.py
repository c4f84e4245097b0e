"""`ray start` for tests, without what no test looks at and each head would pay for.

Written for Ray 2.60; other versions start everything.
"""

import os
from collections.abc import Callable
from typing import Any

import ray
from ray._private import services
from ray._private.node import Node
from ray.scripts import scripts

# Each of the dashboard's modules is a process: those of Serve, Train, Data, events and metrics are
# left out.
_MODULES = ("JobHead", "NodeHead", "ReportHead", "StateHead", "UsageStatsHead")


def _sparing(start: Callable[..., Any]) -> Callable[..., Any]:
    def start_process(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        more = [f"--modules-to-load={','.join(_MODULES)}"] if process_type == "dashboard" else []
        return start([*command, *more], process_type, *args, **kwargs)

    return start_process


def _start_nothing(_: Node) -> None: ...


if __name__ == "__main__":
    if ray.__version__.startswith("2.60."):
        services.start_ray_process = _sparing(services.start_ray_process)
        parts = os.environ.get("PRWT_RAY_PARTS", "").split()
        if "monitor" not in parts:
            Node.start_monitor = _start_nothing
        if "logs" not in parts:
            Node.start_log_monitor = _start_nothing
        if "client" not in parts:
            Node.start_ray_client_server = _start_nothing
    scripts.main()
