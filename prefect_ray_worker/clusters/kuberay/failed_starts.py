"""`FailedStarts`: closes shared clusters that do not start, so that no run joins them any more."""

from contextlib import suppress
from dataclasses import dataclass

import anyio

from prefect_ray_worker.clusters.kuberay.asking import Asking
from prefect_ray_worker.clusters.kuberay.deletion import Deletions
from prefect_ray_worker.clusters.kuberay.reading import ClusterState, Reading
from prefect_ray_worker.clusters.kuberay.shared import Visit, close_cluster, reason_of, was_up
from prefect_ray_worker.errors import ClusterFailed, KubernetesError, KubernetesUnreachable
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import RayClusterObject

# For so many looks beyond its time a run tries to close a cluster: a join can come in between.
_LATE_TRIES = 5


@dataclass(frozen=True)
class FailedStarts:
    """Closes clusters for one attempt that waits for them.

    Attributes:
        client: Of the Kubernetes cluster.
        deletions: Deletes what is closed.
        asking: Says when the attempt's time is over.
    """

    client: KubernetesClient
    deletions: Deletions
    asking: Asking

    async def give_up(self, visit: Visit, found: Reading, *, has_waited: bool) -> bool:
        """End the wait for a cluster that does not start, or not with its workers.

        Returns:
            Whether the attempt gets another cluster. If not, it looks again.

        Raises:
            ClusterFailed: It is over.
        """
        seen = visit.look.seen
        if seen is None:
            return False
        has_head, is_over = _has_head(seen, found), self.asking.is_over()
        if was_up(seen) and not (has_head and is_over):
            return True  # the sweep deletes it when no run uses it
        if found.is_late and found.answers:
            # Its workers can still come, and runs that need its head alone may use it.
            if is_over:
                raise await visit.look.failure(found)
            return False
        if has_waited or not has_head:
            await self._condemn(visit, seen, found)
            return False
        # That was so before the run came: it gets the next one.
        with suppress(ClusterFailed):
            await self._condemn(visit, seen, found)
        return True

    async def _condemn(self, visit: Visit, seen: RayClusterObject, found: Reading) -> None:
        """Close a cluster that does not start, and delete it; all its runs fail with the reason.

        Runs can be using a head that is ready: the sweep deletes it when none does.

        Raises:
            ClusterFailed: It is closed, or cannot be. If not, it has changed: look at it again.
        """
        if found.state is ClusterState.TERMINATING:
            return
        failure = await visit.look.failure(found)
        has_head = _has_head(seen, found)
        why = reason_of(failure, has_head=has_head, takes_jobs=found.answers)
        try:
            is_closed = await close_cluster(self.client, seen, why)
        except KubernetesUnreachable:
            is_closed = False
        except KubernetesError as exc:
            # Another try is refused as well, for example by a webhook. Its other runs see for
            # themselves that it does not start.
            raise failure from exc
        if is_closed:
            visit.failure = failure
            if has_head:
                raise failure
            # The workers of its other runs read the reason first.
            await anyio.sleep(3 * self.asking.timing.poll)
            await self.delete(seen, str(failure))
        if visit.failure is not None:
            raise visit.failure
        if self.asking.is_over(-_LATE_TRIES * self.asking.timing.poll):
            raise failure
        visit.found = None

    async def delete(self, closed: RayClusterObject, why: str) -> None:
        """Delete a closed cluster. What fails here, the next sweep does."""
        with suppress(KubernetesError):
            await self.deletions.delete(self.client, closed, why)


def _has_head(cluster: RayClusterObject, found: Reading) -> bool:
    """Return whether runs can be using the head of a cluster, even one that does not answer us."""
    return found.answers or cluster.is_true("HeadPodReady")
