"""The Kubernetes of `make quickstart-kuberay`: simulated, with a real Ray for each RayCluster."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.fake_kubernetes import CRD, FakeKubernetes, RealHeads

_LOOK_SECONDS = 0.2


async def main(folder: Path) -> None:
    """Write `kubeconfig.yaml` into a folder, and serve until SIGTERM or the parent's end."""
    parent, told = os.getppid(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    # KubeRay's definition of a RayCluster is not part of this repository.
    async with FakeKubernetes(heads=RealHeads(), checks_fields=CRD.exists()) as kubernetes:
        kubernetes.write_kubeconfig(folder).rename(folder / "kubeconfig.yaml")
        while os.getppid() == parent and not told.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), _LOOK_SECONDS)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
