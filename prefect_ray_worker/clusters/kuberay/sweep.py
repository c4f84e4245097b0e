"""`KubeRaySweep`: one round that deletes the RayClusters of a namespace that no run needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio

from prefect_ray_worker.clusters.kuberay.deletion import Deletions
from prefect_ray_worker.clusters.kuberay.manifest import (
    ATTEMPT_LABEL,
    CLOSING,
    MANAGED_BY,
    POOL_LABEL,
    SCOPE_LABEL,
    SHARED,
)
from prefect_ray_worker.clusters.kuberay.orphans import (
    ClusterUse,
    run_in_labels,
    why_idle,
    why_orphaned,
    why_too_old,
)
from prefect_ray_worker.clusters.kuberay.reach import reached, ref_of
from prefect_ray_worker.clusters.kuberay.shared import close_cluster, may_be_used
from prefect_ray_worker.clusters.kuberay.silences import Silences
from prefect_ray_worker.clusters.source import PoolView, RunAndAttempt, Tell
from prefect_ray_worker.clusters.trouble import Trouble
from prefect_ray_worker.clusters.turns import SweepTurns
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.errors import InvalidConfiguration, JobsApiError, KubernetesError
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import RayClusterObject
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import TERMINAL_STATUSES, JobStatus
from prefect_ray_worker.shared.ids import run_of_job

_ANSWER_SECONDS = 20.0
_MILLISECONDS = 1000


@dataclass
class KubeRaySweep:
    """Sweeps the RayClusters of one pool in one namespace, once.

    Attributes:
        client: Of the Kubernetes cluster.
        namespace: Where.
        asked: How the dashboards are reached.
        view: The pool and its runs.
        tell: Told in one line what was deleted, and why.
        deletions: Deletes clusters, and notices what has gone.
        turns: Of the namespace; says what this worker deletes.
        silences: Of the namespace; says since when a dashboard has not answered.
    """

    client: KubernetesClient
    namespace: str
    asked: KubeRay
    view: PoolView
    tell: Tell
    deletions: Deletions
    turns: SweepTurns
    silences: Silences

    async def run(self) -> None:
        """Delete what no run needs any more.

        Raises:
            KubernetesError: Kubernetes could not be asked, or did not delete a cluster; the others
                had their turn.
            Exception: Prefect did not answer; what is too old was deleted all the same.
        """
        labels = {**MANAGED_BY, POOL_LABEL: str(self.view.pool_id)}
        found = await self.deletions.list(self.client, self.namespace, labels, self.view, self.tell)
        self.turns.begin()  # after it: where one way is refused, the next one is tried
        self.silences.keep(cluster.uid for cluster in found)
        now = datetime.now(UTC)
        alone: list[tuple[RayClusterObject, RunAndAttempt]] = []
        shared: list[RayClusterObject] = []
        trouble = Trouble()
        for cluster in found:
            if cluster.is_terminating:
                continue
            if (why := why_too_old(cluster, now=now)) is not None:
                with trouble.kept():
                    await self._delete(cluster, why)
            elif not self._looks_at(cluster):
                continue
            elif cluster.labels.get(SCOPE_LABEL) == SHARED:
                shared.append(cluster)
            elif (of := _attempt_of(cluster)) is not None:
                alone.append((cluster, of))
        with trouble.kept():
            await self._sweep_own(alone, trouble)
        with trouble.kept():
            await self._sweep_shared(shared, trouble)
        trouble.raise_first()

    async def _sweep_own(
        self, clusters: Sequence[tuple[RayClusterObject, RunAndAttempt]], trouble: Trouble
    ) -> None:
        if not clusters:
            return
        # Read after the clusters: a run that is not there has not begun since.
        runs = await self.view.runs(frozenset(of for _, of in clusters))
        now = datetime.now(UTC)
        for cluster, of in clusters:
            why = why_orphaned(cluster, runs.get(of), now=now)
            if why is not None:
                with trouble.kept():
                    await self._delete(cluster, why)

    async def _sweep_shared(self, clusters: Sequence[RayClusterObject], trouble: Trouble) -> None:
        """Close and delete idle clusters.

        In this order: read the clusters, then which of them a run names, then what Ray says. A run
        names its cluster before it stamps it, so one that joins meanwhile has changed the version.
        """
        may_have_runs: list[RayClusterObject] = []
        for cluster in clusters:
            if CLOSING not in cluster.annotations or may_be_used(cluster):
                may_have_runs.append(cluster)
            else:  # closed by a worker that died before it deleted it
                with trouble.kept():
                    await self._delete(cluster, "it was closed")
        used = await self.view.in_use() if may_have_runs else frozenset()
        for cluster in may_have_runs:
            if ref_of(self.namespace, cluster.name) in used:
                self.silences.end(cluster.uid)
            else:
                with trouble.kept():
                    await self._sweep_unnamed(cluster)

    async def _sweep_unnamed(self, cluster: RayClusterObject) -> None:
        """Close and delete a shared cluster that no run names, unless Ray says that it is used."""
        if CLOSING in cluster.annotations:
            await self._delete(cluster, "it did not start, and no run uses it")
            return
        use = await self._use_of(cluster)
        now = datetime.now(UTC)
        if use is None:
            why = why_idle(cluster, self.silences.notice(cluster.uid, now), now=now)
        else:
            self.silences.end(cluster.uid)
            why = why_idle(cluster, use, now=now)
        if why is None or not self._is_due(cluster):
            return
        if await close_cluster(self.client, cluster, why):
            await self._delete(cluster, why)

    async def _use_of(self, cluster: RayClusterObject) -> ClusterUse | None:
        """Return what Ray says about the use of a cluster that no run names; None if nothing."""
        records: list[dict[str, Any]] = []

        def keep(record: dict[str, Any]) -> bool:
            # What counts here; the rest of a record can be large.
            records.append({key: record.get(key) for key in ("status", "end_time", "metadata")})
            return False

        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                connection = (await reached(self.client, cluster, self.asked)).connection
                async with JobsClient(connection) as ray:
                    activities = await ray.activities()
                    await ray.list(keep)
        except (InvalidConfiguration, JobsApiError, KubernetesError, TimeoutError):
            return None
        driver = activities.get("driver")
        if driver is None or driver.is_active == "ERROR":
            return None
        is_used = any(one.is_active == "ACTIVE" for one in activities.values())
        is_used |= any(self._goes_on(record) for record in records)
        ends = [one.last_activity_at for one in activities.values()]
        ends += [_end_of(record) for record in records]
        last = max((end for end in ends if end is not None), default=None)
        return ClusterUse(is_used, None if last is None else datetime.fromtimestamp(last, UTC))

    def _goes_on(self, record: dict[str, Any]) -> bool:
        if record["status"] in TERMINAL_STATUSES:
            return False
        # A PENDING job of a run that has ended has a stop queued, and never starts.
        is_ours = run_of_job(self.view.pool_id, record["metadata"]) is not None
        return record["status"] != JobStatus.PENDING or not is_ours

    def _looks_at(self, cluster: RayClusterObject) -> bool:
        # It takes requests to Prefect, and to the dashboard of a shared cluster.
        return self.turns.looks(cluster.uid, is_mine=self.view.is_mine(cluster.uid))

    def _is_due(self, cluster: RayClusterObject) -> bool:
        return self.turns.is_due(cluster.uid, is_mine=self.view.is_mine(cluster.uid))

    async def _delete(self, cluster: RayClusterObject, why: str) -> None:
        if not self._is_due(cluster):
            return
        if await self.deletions.delete(self.client, cluster, f"{why[0].upper()}{why[1:]}."):
            self.tell(f"Deleting the RayCluster {self.namespace}/{cluster.name}: {why}.")


def _end_of(record: dict[str, Any]) -> float | None:
    end = record["end_time"]
    return end / _MILLISECONDS if isinstance(end, int | float) else None


def _attempt_of(cluster: RayClusterObject) -> RunAndAttempt | None:
    run_id = run_in_labels(cluster)
    attempt = cluster.labels.get(ATTEMPT_LABEL)
    return None if run_id is None or attempt is None else RunAndAttempt(run_id, attempt)
