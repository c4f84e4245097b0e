"""What runs in a head pod: a fake Ray, or a real `ray start --head`."""

import asyncio
import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Protocol

import psutil

from tests.fake_ray import FakeRay
from tests.real_ray import RealRay, marked, real_ray

_GRACE_SECONDS = 10


class Head(Protocol):
    """A running Ray head."""

    @property
    def address(self) -> str: ...

    async def stop(self) -> None: ...


class Heads(Protocol):
    """Starts heads."""

    async def start(self, cluster: str, env: Mapping[str, str]) -> Head: ...


class FakeHead:
    """A fake Ray as the head of a cluster; `ray` is its script."""

    def __init__(self, ray: FakeRay) -> None:
        self.ray = ray

    @property
    def address(self) -> str:
        return self.ray.address

    async def stop(self) -> None:
        await self.ray.__aexit__()


class FakeHeads:
    """Starts a fake Ray for each head, in no time.

    Args:
        prepare: Called with each new fake Ray and the name of its cluster.

    Attributes:
        by_cluster: The newest fake Ray of each cluster.
        without_agent: Whether the heads have no agent yet, which takes jobs, when they start.
    """

    without_agent = False

    def __init__(self, prepare: Callable[[FakeRay, str], None] | None = None) -> None:
        self._prepare = prepare
        self.by_cluster: dict[str, FakeRay] = {}

    async def start(self, cluster: str, env: Mapping[str, str]) -> FakeHead:
        ray = FakeRay(token=env.get("RAY_AUTH_TOKEN"))
        ray.has_agent = not self.without_agent
        if self._prepare is not None:
            self._prepare(ray, cluster)
        await ray.__aenter__()
        self.by_cluster[cluster] = ray
        return FakeHead(ray)


class RealHead:
    """A `ray start --head` with ports and a directory of its own."""

    def __init__(self, ray: RealRay, stack: ExitStack) -> None:
        self.ray = ray
        self._stack = stack

    @property
    def address(self) -> str:
        return self.ray.address

    async def stop(self) -> None:
        """End as a container does: SIGTERM to its first process, then SIGKILL to all."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        doomed = marked(str(self.ray.temp_dir))
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.ray.pid)
            doomed |= {first, *first.children(recursive=True)}
            first.terminate()
            psutil.wait_procs([first], timeout=_GRACE_SECONDS)
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._stack.close()


class RealHeads:
    """Starts a real Ray for each head; about six seconds each.

    Args:
        num_cpus: What each believes to have. The manifest is not asked: a fake Kubernetes starts
            no worker nodes.

    Attributes:
        by_cluster: The newest Ray of each cluster.
    """

    def __init__(self, num_cpus: int = 2) -> None:
        self._num_cpus = num_cpus
        self.by_cluster: dict[str, RealRay] = {}

    async def start(self, cluster: str, env: Mapping[str, str]) -> RealHead:
        stack = ExitStack()
        start = functools.partial(real_ray, self._num_cpus, env)
        ray = await asyncio.to_thread(lambda: stack.enter_context(start()))
        self.by_cluster[cluster] = ray
        return RealHead(ray, stack)
