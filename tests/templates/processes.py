"""Runs what the templates start, as real processes of a cluster on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.settings import PREFECT_API_URL

from tests import real_ray
from tests.integration.worker_process import heed_interrupts
from tests.real_ray import RealRay
from tests.waiting import wait_until

_NODE = Path(__file__).parents[1] / "task_runner" / "start_node.py"


def commands(folder: Path) -> Path:
    """Return a folder with a `ray` that lets nodes join a cluster on 127.0.0.1."""
    folder.mkdir(exist_ok=True)
    script = folder / "ray"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {_NODE} "$@"\n')
    script.chmod(0o755)
    (folder / "prefect").symlink_to(Path(sys.executable).parent / "prefect")
    return folder


def node_options() -> str:
    """Return what a further node on this machine needs, for `ray start`."""
    agent, grpc, metrics, environments = real_ray.free_ports(4)
    return (
        f"--node-ip-address=127.0.0.1 --dashboard-agent-listen-port={agent} "
        f"--dashboard-agent-grpc-port={grpc} --metrics-export-port={metrics} "
        f"--runtime-env-agent-port={environments} --min-worker-port=0 --max-worker-port=0 "
        "--object-store-memory=100000000"
    )


@contextmanager
def running(
    command: list[str], folder: Path, marker: Path, env: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command of a template until the context ends; everything that it started ends too."""
    bin_folder = commands(folder / "bin")
    environment = real_ray.environment_of(marker, {})
    environment |= {
        "PATH": f"{bin_folder}{os.pathsep}{environment['PATH']}",
        "PREFECT_API_URL": PREFECT_API_URL.value() or "",
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        # Flows that a process worker starts find this checkout's package.
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **env,
    }
    with (folder / "output.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
    try:
        yield process
    finally:
        # Its Ray has the head's mark, and is ended with the head.
        real_ray.end(process, marker="nobody's")


async def until_nodes(ray: RealRay, count: int) -> list[dict[str, float]]:
    """Wait until the cluster has so many nodes; return the resources of each."""
    async with httpx.AsyncClient(trust_env=False) as client:

        async def alive() -> list[dict[str, float]]:
            answer = await client.get(f"{ray.address}/api/v0/nodes")
            nodes = answer.json()["data"]["result"]["result"]
            found = [n["resources_total"] for n in nodes if n["state"] == "ALIVE"]
            return found if len(found) == count else []

        return await wait_until(alive, timeout=60, description=f"{count} nodes")
