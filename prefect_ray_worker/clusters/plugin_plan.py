"""`PluginPlan`: a cluster that an attempt will get from a plugin."""

import platform
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from prefect_ray_worker.clusters.installed import LoadedPlugin
from prefect_ray_worker.clusters.plugin import AskedCluster, MadeCluster
from prefect_ray_worker.clusters.source import Cluster, ClusterPlan
from prefect_ray_worker.config.cluster_source import DEFAULT_START_TIMEOUT
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import ClusterRef


@dataclass(frozen=True)
class PluginPlan(ClusterPlan):
    """A cluster that an attempt will get from a plugin.

    Attributes:
        loaded: The plugin.
        asked: What it is asked for; None if there is no run.
        fields: The plugin's own fields.
        start_timeout: Seconds from the claim until it must take jobs.
    """

    loaded: LoadedPlugin | None = None
    asked: AskedCluster[Any] | None = None
    fields: BaseModel | None = None
    start_timeout: float = DEFAULT_START_TIMEOUT

    def names(self, ref: ClusterRef) -> bool:
        """Return whether a recorded reference can be to the planned cluster.

        True for another home, too: the fields that have changed may say nothing about the place.
        """
        return self.ref is not None and self.ref.may_be(ref)


def complete(plan: ClusterPlan) -> tuple[PluginPlan, LoadedPlugin, AskedCluster[Any]]:
    """Return the plan of an attempt, its plugin, and what that is asked for."""
    if not isinstance(plan, PluginPlan) or plan.loaded is None or plan.asked is None:
        raise ValueError("This plan was made by another source, or there is no run.")
    return plan, plan.loaded, plan.asked


def plan_of(plan: PluginPlan, made: MadeCluster) -> PluginPlan:
    """Return the plan of another cluster of the same run, in the same place."""
    plan, loaded, asked = complete(plan)
    other = AskedCluster(made.name, asked.fields, asked.run_id, asked.pool_id)
    return PluginPlan(home=plan.home, loaded=loaded, asked=other)


def cluster_of(plan: PluginPlan, connection: Connection) -> Cluster:
    """Return the planned cluster, which now has an address."""
    plan, loaded, asked = complete(plan)
    return Cluster(
        ClusterRef(loaded.name, asked.name, plan.home),
        connection,
        platform.node() if loaded.plugin.only_here else None,
        is_on_demand=True,
        is_for_one_run=True,
    )
