"""`make quickstart-kuberay`: a RayCluster is made for a run and deleted after it.

Kubernetes and KubeRay are simulated, Prefect, the worker and Ray are real.
"""

import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

STATE = Path(tempfile.mkdtemp(prefix="prw-quickstart-"))
os.environ["QUICKSTART_STATE"] = str(STATE)
# A server of its own: runs of the user's own pools have no business on this Kubernetes.
os.environ.pop("PREFECT_API_URL", None)

import anyio  # noqa: E402
import run  # noqa: E402
import yaml  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402
from run import CYAN, say, step  # noqa: E402
from stack import Stack  # noqa: E402

from prefect_ray_worker.kubernetes_api.client import KubernetesClient  # noqa: E402
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig  # noqa: E402

NAMESPACE = "ray"
# Nothing pulls it: the simulated nodes run the Ray of this virtual environment.
KUBERAY = {"image": f"rayproject/ray:{version('ray')}", "head": {"cpus": 2, "memory": "4GiB"}}
GONE_SECONDS = 60
_LOOK_SECONDS = 0.3

NEXT = """
What to try next
    docs/tutorial/a-cluster-per-run.md     the same with kind and the real KubeRay
    deployment-templates/kuberay-per-run   manifests for your Kubernetes
    docs/how-to/cluster-per-run.md         sizes, images, limits, retries"""


class Watch:
    """Prints what becomes of RayClusters, as `kubectl get --watch` would.

    Attributes:
        made: How many there have been.
        left: How many there are.
    """

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._seen: set[tuple[str, str]] = set()
        self._there: set[str] = set()
        self.made = 0

    @property
    def left(self) -> int:
        return len(self._there)

    async def look(self) -> None:
        """Print what has changed since the last look."""
        clusters = {c.name: c for c in await self._client.list_clusters(NAMESPACE)}
        for name in sorted(self._there - clusters.keys()):
            self._tell(name, f"The RayCluster is gone, and so are its pods: {name}")
        for name, cluster in clusters.items():
            if self._tell(name, f"There is a new RayCluster: {name}"):
                self.made += 1
            if cluster.is_terminating:
                self._tell(name, "The RayCluster is being deleted; its pods end first")
        for pod in await self._client.pods(NAMESPACE):
            if pod.is_head:
                state = "is ready: Ray takes jobs" if pod.is_ready else f"is {pod.phase}"
                if pod.phase and pod.cluster in clusters:
                    self._tell(pod.name, f"The head pod {state}")
        self._there = set(clusters)

    def _tell(self, about: str, line: str) -> bool:
        """Print a line about an object, once; return whether it is new."""
        is_new = (about, line) not in self._seen
        self._seen.add((about, line))
        if is_new:
            say(f"    {datetime.now(UTC):%H:%M:%S} | Kubernetes: {line}", CYAN)
        return is_new


async def show(up: Stack, kubeconfig: Path) -> bool:
    config = Kubeconfig.of_block(yaml.safe_load(kubeconfig.read_text()))
    async with get_client() as client, KubernetesClient(config) as kubernetes:
        await run.until_pool_exists(client)
        step("Running docs/examples/quickstart/flow.py with the job variable kuberay")
        flow_run = await run.deploy(client, kuberay=KUBERAY)
        say(f"    {up.ui_url}/runs/flow-run/{flow_run.id}")
        watch = Watch(kubernetes)
        is_over = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def go_on() -> None:
                while watch.left or not is_over.is_set():
                    await watch.look()
                    await anyio.sleep(_LOOK_SECONDS)

            tasks.start_soon(go_on)
            ended = await run.follow(client, flow_run)
            is_over.set()
            tasks.cancel_scope.deadline = anyio.current_time() + GONE_SECONDS
    completed = run.is_completed(ended)
    say(f"    RayClusters made: {watch.made}, left: {watch.left}")
    return completed and watch.made == 1 and not watch.left


def main() -> int:
    began, up, completed = time.monotonic(), Stack(), False
    try:
        step("Starting a simulated Kubernetes with a simulated KubeRay")
        say("    There is no Kubernetes here: a small API server of this project's tests stands in")
        say("    for it. Prefect, the worker and the Ray in the head pod are real.")
        kubeconfig = up.start_kubernetes()
        run.start_prefect(up, usual_port=False, KUBECONFIG=str(kubeconfig))
        say("    Its KUBECONFIG leads to the simulated Kubernetes.")
        with temporary_settings({PREFECT_API_URL: up.api_url}):
            completed = anyio.run(show, up, kubeconfig)
        step("Stopping the worker, the simulated Kubernetes and the server")
    finally:
        up.stop()
        if completed or sys.exc_info()[0] is KeyboardInterrupt:
            shutil.rmtree(STATE, ignore_errors=True)
    say(NEXT if completed else f"    The logs are in {STATE}")
    say(f"\n{time.monotonic() - began:.0f} s")
    return 0 if completed else 1


if __name__ == "__main__":
    run.run_until_interrupted(main)
