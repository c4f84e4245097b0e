"""A second node on this machine, to which a folder of this machine looks empty."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.real_ray import TERMS, RealRay, end, environment_of, free_ports

_START = Path(__file__).with_name("start_node.py")
_READY_SECONDS = 60


@contextmanager
def node_without(folder: Path, ray: RealRay, resource: str) -> Iterator[None]:
    """Run a raylet in a mount namespace of its own, where a folder is an empty `tmpfs`.

    Args:
        folder: What the node must not see.
        ray: The cluster that it joins.
        resource: A resource that only this node has.
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
    script = f"mount -t tmpfs none {folder} && exec {sys.executable} {_START} start --block {start}"
    log = ray.temp_dir / "second-node.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script],
            env=environment_of(ray.temp_dir, {}),
            cwd="/",
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_joined(ray, process, log)
        yield
    finally:
        # Its processes bear the head's mark; only its own family ends here.
        end(process, marker="nobody's")


def _wait_until_joined(ray: RealRay, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline and process.poll() is None:
            nodes = client.get(f"{ray.address}/nodes?view=summary").json()["data"]["summary"]
            if sum(node["raylet"].get("state") == "ALIVE" for node in nodes) > 1:
                return
            time.sleep(0.3)
    raise RuntimeError(f"The second node did not join:\n{log.read_text()[-2000:]}")


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
