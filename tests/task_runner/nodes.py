"""A second node on this machine, with a view of its files that may be another."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.ports import free_ports
from tests.real_ray import TERMS, RealRay, end, environment_of

_START = Path(__file__).with_name("start_node.py")
_READY_SECONDS = 60


@contextmanager
def second_node(
    ray: RealRay,
    resource: str,
    *,
    without: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a further raylet; yields the parent of its processes.

    Args:
        ray: The cluster that it joins.
        resource: A resource that only this node has.
        without: A folder that the node does not see: it is an empty `tmpfs` there.
        env: More environment variables for it.
    """
    ports = free_ports(4)
    options = {
        "address": ray.gcs_address,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 2,
        "resources": f"'{{\"{resource}\": 1}}'",
        "object-store-memory": 100_000_000,
        "dashboard-agent-listen-port": ports[0],
        "dashboard-agent-grpc-port": ports[1],
        "metrics-export-port": ports[2],
        "runtime-env-agent-port": ports[3],
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    start = " ".join(f"--{key}={value}" for key, value in options.items())
    hide = f"mount -t tmpfs none {without} && " if without else ""
    script = f"{hide}exec {sys.executable} {_START} start --block {start}"
    log = ray.temp_dir / f"node-{resource}.log"
    before = _nodes(ray)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script],
            env=environment_of(ray.temp_dir, env or {}),
            cwd="/",
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while _nodes(ray) <= before:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"The second node did not join:\n{log.read_text()[-2000:]}")
            time.sleep(0.3)
        yield process
    finally:
        # Its processes bear the head's mark; only its own family ends here.
        end(process, marker="nobody's")


def kill(node: "subprocess.Popen[bytes]") -> None:
    """Kill all processes of a node at once, as a machine does that loses its power."""
    parent = psutil.Process(node.pid)
    for process in (*parent.children(recursive=True), parent):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _nodes(ray: RealRay) -> int:
    """Return how many nodes have ever joined."""
    with httpx.Client(trust_env=False, timeout=10) as client:
        nodes = client.get(f"{ray.address}/nodes?view=summary").json()["data"]["summary"]
    return len(nodes)


def environment(api_url: str, home: Path, ray: RealRay) -> dict[str, str]:
    """Return what a process needs to join the cluster and talk to the Prefect server."""
    repository = Path(__file__).parents[2]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PREFECT_"))}
    return {
        **clean,
        **TERMS,
        "RAY_ADDRESS": ray.gcs_address,
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(home),
        "PYTHONPATH": str(repository),
    }
