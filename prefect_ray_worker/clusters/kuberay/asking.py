"""`Asking`: asks Kubernetes until it answers and has room, as long as a start may take."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import anyio

from prefect_ray_worker.clusters.kuberay.look import StartTiming, start_failed, start_refused
from prefect_ray_worker.clusters.source import StartProgress
from prefect_ray_worker.errors import KubernetesError, KubernetesUnreachable, QuotaExceeded
from prefect_ray_worker.shared.backoff import Backoff, jittered
from prefect_ray_worker.shared.category import Category

T = TypeVar("T")


@dataclass(frozen=True)
class Asking:
    """Asks for what an attempt's cluster needs, again and again.

    Attributes:
        namespace: Where the cluster is, or goes.
        progress: Told what it waits for.
        timing: Waits.
        limit: Seconds that a cluster may take, from the attempt's claim.
        waiter: What waits for a quota, as the subject of a sentence.
        api: What cannot be asked, as the subject of a sentence.
    """

    namespace: str
    progress: StartProgress
    timing: StartTiming
    limit: float
    waiter: str
    api: str

    async def ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the answer.

        Raises:
            ClusterFailed: There is none in time, or one that another try does not change.
        """
        backoff = Backoff()
        while True:
            try:
                return await ask()
            except QuotaExceeded as exc:
                category, said = Category.CLUSTER_QUOTA, str(exc)
                self.progress.waits(f"{self.waiter} waits for its quota: {said}")
                pause = jittered(self.timing.queue)
            except KubernetesUnreachable as exc:
                category, said = Category.KUBERNETES_UNREACHABLE, str(exc)
                self.progress.waits(f"{self.api} cannot be asked: {said}")
                pause = backoff.next()
            except KubernetesError as exc:
                raise start_refused(exc, self.namespace) from exc
            if self.is_over(pause):
                raise start_failed(category, said)
            await anyio.sleep(pause)

    def is_over(self, pause: float = 0.0) -> bool:
        """Return whether the time for the start is over, or will be after a pause."""
        # From the claim, which Prefect records: an heir does not wait in line anew.
        waited = (datetime.now(UTC) - self.progress.began).total_seconds()
        return waited + pause >= self.limit
