"""Runs as a Ray Job and says what it finds where the drivers of flow runs would run.

Its source is the job's command (`python -c`), so that it needs nothing that it is there to look
for. So: the standard library only, until it looks for something else; no name of ours; and nothing
that a Python older than ours could not read. It prints a line for each subject as soon as it knows,
so that what comes first is known even if what comes later hangs.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Callable

MARK = "prefect-ray-worker doctor:"
TASK_SECONDS = 20


def tell(subject: str, look: Callable[[], dict[str, Any]]) -> None:
    """Print what a look at a subject gives, or why it gives nothing."""
    try:
        found = look()
    except BaseException as exc:
        found = trouble(exc)
    # Libraries may have left a line without its end.
    print(f"\n{MARK} {json.dumps({subject: found})}", flush=True)


def trouble(exc: BaseException) -> dict[str, Any]:
    """Return what a failure says, in a line, with the status of an HTTP answer behind it."""
    # Prefect's client says that it has "failed to reach" a server which has refused it.
    while exc.__cause__ is not None:
        exc = exc.__cause__
    text = " ".join(str(exc).split())[:600]
    response = getattr(exc, "response", None)
    return {
        "error": f"{type(exc).__name__}: {text}" if text else type(exc).__name__,
        "status": getattr(response, "status_code", None),
    }


def python() -> dict[str, Any]:
    """Return what runs here, and what its clock says."""
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "host": socket.gethostname(),
        "time": time.time(),
    }


def driver() -> dict[str, Any]:
    """Import this package, as a job does first."""
    import prefect_ray_worker

    return {"version": prefect_ray_worker.__version__}


def prefect() -> dict[str, Any]:
    """Import Prefect."""
    import prefect

    return {"version": prefect.__version__}


def api(pool: str) -> dict[str, Any]:
    """Ask the Prefect API for something, as a driver does."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    # Without one, Prefect would start a server of its own here.
    if not url:
        return {"url": None}
    with get_client(sync_client=True, httpx_settings={"timeout": 10}) as client:
        # Something that a server with authentication shows to nobody else.
        answer = client.request("POST", "/flows/filter", json={"limit": 1})
        answer.json()
        date = answer.headers.get("date")
        knows_pool = None
        if pool:
            from prefect.exceptions import ObjectNotFound

            try:
                client.read_work_pool(pool)
                knows_pool = True
            except ObjectNotFound:
                knows_pool = False
    return {"url": str(url), "date": date, "time": time.time(), "knows_pool": knows_pool}


def ray() -> dict[str, Any]:
    """Join the cluster, as a flow with Ray tasks does."""
    import ray

    # A job has the address of its cluster in RAY_ADDRESS; without it, "auto" finds none and says
    # so, where no address at all would start a Ray here.
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    here = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return {
        "version": ray.__version__,
        "nodes": len(alive),
        "on_head": any(
            node["NodeID"] == here and "node:__internal_head__" in node["Resources"]
            for node in alive
        ),
    }


def other_node() -> dict[str, Any]:
    """Run a task on another node, if there is one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here]
    if not others:
        return {"host": None}

    @ray.remote(num_cpus=0, max_retries=0)
    def look() -> dict[str, Any]:
        import platform
        import socket
        from importlib.metadata import version

        return {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "prefect": version("prefect"),
        }

    there = NodeAffinitySchedulingStrategy(others[0], soft=False)
    return ray.get(look.options(scheduling_strategy=there).remote(), timeout=TASK_SECONDS)


def main(pool: str) -> None:
    """Look at everything, in the order in which later things need earlier ones."""
    # Better no answer than a late one: the one who asks waits.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "0")
    tell("python", python)
    tell("driver", driver)
    tell("prefect", prefect)
    tell("api", lambda: api(pool))
    tell("ray", ray)
    tell("other_node", other_node)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
