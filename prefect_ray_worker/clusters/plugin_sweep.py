"""`PluginSweep`: one round that deletes a plugin's clusters in one place that no run needs."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect_ray_worker.clusters.installed import LoadedPlugin, SweptPlace
from prefect_ray_worker.clusters.plugin import AskedCluster, MadeCluster
from prefect_ray_worker.clusters.plugin_places import PluginPlaces
from prefect_ray_worker.clusters.plugin_plan import PluginPlan
from prefect_ray_worker.clusters.source import PoolView, RunAndAttempt, RunOfCluster, Tell
from prefect_ray_worker.clusters.trouble import Trouble
from prefect_ray_worker.clusters.unneeded import why_unneeded
from prefect_ray_worker.errors import ClusterSourceUnclear
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents, ClusterHappening
from prefect_ray_worker.shared.ids import ClusterRef, run_of_cluster_name


@dataclass
class PluginSweep:
    """Sweeps the clusters of one pool in one place, once.

    Attributes:
        place: Where.
        places: Told what is there.
        view: The pool and its runs.
        tell: Told in one line what was deleted, and why.
        events: Takes which clusters have gone.
        delete: Has a cluster deleted, for a reason in a sentence.
    """

    place: SweptPlace
    places: PluginPlaces
    view: PoolView
    tell: Tell
    events: ClusterEvents
    delete: Callable[[PluginPlan, str], Awaitable[None]]

    async def run(self) -> None:
        """Delete what no run needs any more.

        Raises:
            ClusterSourceUnclear: The plugin could not be asked, or did not delete a cluster; the
                others were.
            Exception: Prefect did not answer.
        """
        plan = self.places.plan(self.place)
        if plan.loaded is None:
            return
        if not plan.loaded.lists:
            self.places.answered(self.place, ())
            return
        found = await self._found(plan, plan.loaded)
        turns = self.places.turns(self.place)
        turns.begin()
        ours = {
            RunAndAttempt(*of): made
            for made in found.values()
            if turns.looks(made.name, is_mine=self.view.is_mine(made.name))
            and (of := run_of_cluster_name(made.name)) is not None
        }
        # Read after the clusters: a run that is not there has not begun since.
        runs = await self.view.runs(frozenset(ours))
        trouble = Trouble()
        for of, made in ours.items():
            with trouble.kept():
                await self._sweep(plan, plan.loaded, made, of, runs.get(of))
        trouble.raise_first()

    async def _found(self, plan: PluginPlan, loaded: LoadedPlugin) -> Mapping[str, MadeCluster]:
        """Return the clusters that are there, and tell which have gone."""
        fields, pool_id = plan.fields, str(self.view.pool_id)
        try:
            found = {c.name: c for c in await loaded.ask(lambda p: p.made(fields, pool_id))}
        except ClusterSourceUnclear:
            self.places.failed(self.place)
            raise
        for name in self.places.answered(self.place, found):
            of = run_of_cluster_name(name)
            if of is not None:
                ref = ClusterRef(loaded.name, name)
                await self.events.tell(ClusterHappening.GONE, ref, run_id=of[0])
        return found

    async def _sweep(
        self,
        plan: PluginPlan,
        loaded: LoadedPlugin,
        made: MadeCluster,
        of: RunAndAttempt,
        run: RunOfCluster | None,
    ) -> None:
        # The run's own: another run, or the pool, may keep its clusters for a shorter time.
        kept = plan.kept if run is None or run.kept is None else run.kept
        age = (datetime.now(UTC) - made.created_at).total_seconds()
        why = why_unneeded(of.attempt, run, age=age, kept=kept or 0)
        turns, is_mine = self.places.turns(self.place), self.view.is_mine(made.name)
        if why is None or not turns.is_due(made.name, is_mine=is_mine):
            return
        asked = AskedCluster[Any](made.name, plan.fields, of.run_id, str(self.view.pool_id))
        doomed = PluginPlan(home=self.place.home, loaded=loaded, asked=asked)
        await self.delete(doomed, f"{why[0].upper()}{why[1:]}.")
        self.tell(f"Deleting the cluster {loaded.name}:{made.name}: {why}.")
