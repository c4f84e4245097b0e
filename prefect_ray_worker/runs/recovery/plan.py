"""`RunPlan`: what a run to adopt asks for by now."""

from dataclasses import dataclass

from prefect_ray_worker.clusters.source import Cluster, ClusterPlan
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.shared.ids import ClusterRef

_NO_PLAN = ClusterPlan()


@dataclass(frozen=True)
class RunPlan:
    """What a run's configuration says by now.

    Attributes:
        configuration: The configuration; the defaults if it cannot be used any more.
        cluster: The cluster that it names; None if it is not there, or not known.
        trouble: Why the configuration cannot be used any more; None if it can.
        named: The cluster that it names, also if it cannot be opened as the configuration says.
        plan: What its source will give; nothing if the configuration cannot be used.
    """

    configuration: RayJobConfiguration
    cluster: Cluster | None
    trouble: Exception | None = None
    named: ClusterRef | None = None
    plan: ClusterPlan = _NO_PLAN

    def is_for(self, ref: ClusterRef) -> bool:
        """Return whether a recorded reference is to the cluster of this plan."""
        found = self.cluster is not None and self.cluster.ref == ref
        return found or self.plan.names(ref)
