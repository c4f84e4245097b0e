"""What the extra `kuberay` costs a worker: time to import, and memory.

    python -m tests.benchmarks.kubernetes_client [rounds]

New processes in turn, so that a slow machine slows all: the worker without the extra; with the
extra installed and no pool that asks for it; with an open client of the Kubernetes API; the same
after it has read a list of 1,000 RayClusters. Printed are the medians, and each as a ratio to the
first.
"""

import json
import statistics
import subprocess
import sys
from typing import Any

import anyio

from tests.benchmarks.record import Chart, record
from tests.fake_kubernetes import FakeKubernetes, Script, a_manifest

_CLUSTERS = 1_000
_CHILD = """
import json, sys, time
import psutil
if sys.argv[1] == "without":
    sys.modules["lightkube"] = None  # as if it were not installed
began = time.perf_counter()
import prefect_ray_worker.worker
worker_seconds = time.perf_counter() - began
what, config = sys.argv[1], json.loads(sys.argv[2])

async def use():
    from prefect_ray_worker.kubernetes_api.client import KubernetesClient
    from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
    async with KubernetesClient(Kubeconfig.of_block(config)) as client:
        opened = time.perf_counter() - began
        if what == "list":
            for _ in range(3):
                assert len(await client.list_clusters("ray", cached=True)) == CLUSTERS
        return opened

seconds = worker_seconds
if what not in ("without", "unused"):
    import anyio
    seconds = anyio.run(use)
process = psutil.Process()
print(json.dumps([seconds, process.memory_info().rss / 2**20]))
""".replace("CLUSTERS", str(_CLUSTERS))
_KINDS = {
    "without": "the worker without the extra",
    "unused": "with the extra, unused",
    "open": "with an open client of Kubernetes",
    "list": f"after three lists of {_CLUSTERS:,} clusters",
}


async def _measure(kind: str, config: dict[str, Any]) -> tuple[float, float]:
    command = [sys.executable, "-c", _CHILD, kind, json.dumps(config)]
    done = await anyio.run_process(command, stderr=subprocess.PIPE)
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


async def main(rounds: int) -> None:
    figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _KINDS}
    async with FakeKubernetes() as kubernetes:
        kubernetes.scripts.default = Script(ignored=True)
        for number in range(_CLUSTERS):
            kubernetes.store.create("rayclusters", "ray", a_manifest(f"ray-{number}"))
        await _measure("list", kubernetes.kubeconfig())  # the first one fills the disk's cache
        for _ in range(rounds):
            for kind, found in figures.items():
                found.append(await _measure(kind, kubernetes.kubeconfig()))
    base = [statistics.median(column) for column in zip(*figures["without"], strict=True)]
    start, memory = dict[str, float](), dict[str, float]()
    for kind, found in figures.items():
        seconds, megabytes = (statistics.median(column) for column in zip(*found, strict=True))
        start[_KINDS[kind]], memory[_KINDS[kind]] = seconds, megabytes
        print(
            f"{_KINDS[kind]:45} {seconds:5.2f} s ({seconds / base[0]:4.2f} x)"
            f" {megabytes:6.1f} MiB ({megabytes / base[1]:4.2f} x)"
        )
    record([Chart("Time to start", "s", start), Chart("Memory", "MiB", memory)], rounds=rounds)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5)
