"""Runs as a Ray Job and prints what it finds where the drivers of flow runs would run.

The doctor sends this source as the job's command (`python -c`), so that it runs where this package
is missing. Use the standard library only until a check needs more, import nothing of this package
except in `driver`, and write what Python 3.7 can read. Each finding is printed at once: the first
ones arrive even if a later check hangs.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import socket
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Callable

MARK = "prefect-ray-worker doctor:"
TASK_SECONDS = 20
# The end of the job has to be seen in time, too.
END_SECONDS = 5
BEGAN = time.monotonic()


def tell(subject: str, check: Callable[[], dict[str, Any]]) -> None:
    """Print what a check finds, or why it finds nothing."""
    try:
        found = check()
    except BaseException as exc:
        found = trouble(exc)
    # A library may have left its last line without an end.
    print(f"\n{MARK} {json.dumps({subject: found})}", flush=True)


def trouble(exc: BaseException) -> dict[str, Any]:
    """Return an error as one line, with the HTTP status behind it if there is one."""
    # Prefect's client says "failed to reach" also where the server rejected it: the cause knows.
    while exc.__cause__ is not None:
        exc = exc.__cause__
    text = masked(" ".join(str(exc).split()))[:600]
    response = getattr(exc, "response", None)
    return {
        "error": f"{type(exc).__name__}: {text}" if text else type(exc).__name__,
        "status": getattr(response, "status_code", None),
    }


def masked(text: str) -> str:
    """Return a text without the credentials in it: a job's log is open to many."""
    # httpx quotes the whole header, with the key of the API.
    text = re.sub(r"(Illegal header (?:value|name)|Invalid port).*", r"\1", text)
    return re.sub(r"://\S*@", "://***@", text)


def python() -> dict[str, Any]:
    """Return which Python runs here, and what the clock says."""
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "host": socket.gethostname(),
        "time": time.time(),
    }


def driver() -> dict[str, Any]:
    """Import this package, as the first thing that a job does."""
    import prefect_ray_worker

    return {"version": prefect_ray_worker.__version__}


def prefect() -> dict[str, Any]:
    """Import Prefect."""
    import prefect

    return {"version": prefect.__version__}


def api(pool: str) -> dict[str, Any]:
    """Call the Prefect API, as a driver does."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    # Without one, Prefect would start a server of its own here.
    if not url:
        return {"url": None}
    with get_client(sync_client=True, httpx_settings={"timeout": 10}) as client:
        # A server with authentication answers this only with credentials.
        answer = client.request("POST", "/flows/filter", json={"limit": 1})
        answer.json()
        date = answer.headers.get("date")
        knows_pool = None
        if pool:
            from prefect.exceptions import ObjectNotFound

            try:
                client.read_work_pool(pool)
                knows_pool = True
            except ObjectNotFound as exc:
                answer = getattr(exc.http_exc, "response", None)
                if answer is not None and not says_prefect(answer.content):
                    raise exc.http_exc from None
                knows_pool = False
    return {"url": masked(str(url)), "date": date, "time": time.time(), "knows_pool": knows_pool}


def says_prefect(body: bytes) -> bool:
    """Return whether a 404 is Prefect's own, by the rule of `shared.run_rules`."""
    try:
        answer = json.loads(body)
        says = answer.get("detail") or answer.get("exception_message")
    except (ValueError, AttributeError):
        return False
    return isinstance(says, str) and says != "Not Found"


def ray() -> dict[str, Any]:
    """Join the cluster, as a flow with Ray tasks does."""
    import ray

    # A job has its cluster's address in RAY_ADDRESS. Without that, "auto" raises an error; no
    # address at all would start a Ray here.
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


def task_seconds(wait: float) -> float:
    """Return how long a task may take: its node may have to set up the runtime environment."""
    return max(TASK_SECONDS, wait - (time.monotonic() - BEGAN) - END_SECONDS)


def other_node(wait: float) -> dict[str, Any]:
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
    return ray.get(look.options(scheduling_strategy=there).remote(), timeout=task_seconds(wait))


def correct_credentials() -> None:
    """Drop blank credentials and the line end of a key, as the driver does (`supervisor.py`)."""
    for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_CLIENT_CUSTOM_HEADERS"):
        if name in os.environ and not os.environ[name].strip():
            del os.environ[name]
    if "PREFECT_API_KEY" in os.environ:
        os.environ["PREFECT_API_KEY"] = os.environ["PREFECT_API_KEY"].strip()


def main(pool: str, wait: float) -> None:
    """Run all checks; later ones need what earlier ones found.

    Args:
        pool: Name of the work pool; empty if none was named.
        wait: How many seconds the doctor waits for the end of this job.
    """
    # Someone is waiting: better no answer than a late one.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "0")
    correct_credentials()
    tell("python", python)
    tell("driver", driver)
    tell("prefect", prefect)
    tell("api", lambda: api(pool))
    tell("ray", ray)
    tell("other_node", lambda: other_node(wait))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
