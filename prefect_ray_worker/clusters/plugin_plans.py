"""`PluginPlans`: the plans by which the clusters of plugins were made. Pure."""

from dataclasses import replace

from pydantic import BaseModel

from prefect_ray_worker.clusters.installed import SweptPlace
from prefect_ray_worker.clusters.plugin_plan import PluginPlan, complete
from prefect_ray_worker.shared.ids import ClusterRef


class PluginPlans:
    """Remembers the plans of one worker: a reference in a pid has no fields.

    A run can have several, one for each home: its fields were changed since, or its cluster was
    looked for with those of the pool. What one of them says is nothing about the others.
    """

    def __init__(self) -> None:
        self._plans: dict[ClusterRef, dict[str | None, PluginPlan]] = {}

    def add(self, plan: PluginPlan) -> None:
        """Remember the plan of an attempt."""
        if plan.ref is not None:
            self._plans.setdefault(plan.ref, {})[plan.home] = plan

    def __contains__(self, ref: ClusterRef) -> bool:
        """Return whether there is a plan for a cluster, at whatever home."""
        return ref in self._plans

    def of(self, ref: ClusterRef) -> PluginPlan | None:
        """Return the plan by which a cluster was made; the first one if its home is not known."""
        plans = self._plans.get(ref, {})
        return next((plan for home, plan in plans.items() if ref.may_be_at(home)), None)

    def planned_in(self, place: SweptPlace) -> list[PluginPlan]:
        """Return the plans of all clusters in a place."""
        plans = [complete(plan) for plans in self._plans.values() for plan in plans.values()]
        return [plan for plan, loaded, asked in plans if loaded.place(asked.fields) == place]

    def renew(self, plan: PluginPlan, fields: BaseModel) -> None:
        """Use other fields, with renewed secrets, for a planned cluster."""
        plan, _, asked = complete(plan)
        self.add(replace(plan, asked=replace(asked, fields=fields), fields=fields))

    def forget(self, ref: ClusterRef) -> None:
        """Forget a cluster that is deleted."""
        self._plans.pop(ref, None)

    def clear(self) -> None:
        """Forget all."""
        self._plans.clear()
