"""`PluginClusters`: the clusters of `ClusterPlugin`s, which other packages install.

A plugin is loaded when the first run asks for it. Whatever it raises ends at most the run that it
was called for.
"""

import logging
import platform
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import anyio
import anyio.to_thread
from pydantic import BaseModel

from prefect_ray_worker.clusters.answering import silence_of
from prefect_ray_worker.clusters.installed import LoadedPlugin, SweptPlace, load_plugin, said_by
from prefect_ray_worker.clusters.plugin import AskedCluster
from prefect_ray_worker.clusters.plugin_places import PluginPlaces
from prefect_ray_worker.clusters.plugin_plan import PluginPlan, cluster_of, complete, plan_of
from prefect_ray_worker.clusters.plugin_plans import PluginPlans
from prefect_ray_worker.clusters.plugin_sweep import PluginSweep
from prefect_ray_worker.clusters.source import (
    Cluster,
    ClusterPlan,
    PoolView,
    StartProgress,
    Tell,
)
from prefect_ray_worker.clusters.trouble import Trouble
from prefect_ray_worker.config.cluster_source import (
    DEFAULT_START_TIMEOUT,
    KEEP_FAILED,
    START_TIMEOUT,
    TYPE,
)
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import (
    ClusterFailed,
    ClusterSourceUnclear,
)
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents, ClusterHappening
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.ids import (
    ClusterRef,
    own_cluster_name,
    run_in,
    run_of_cluster_name,
)

_POOL_LABEL = "prefect.io/work-pool-id"

_log = logging.getLogger("prefect.workers.ray.sources")


class PluginClusters:
    """Makes and deletes the clusters of all plugins, for one worker.

    Args:
        events: Takes what happens to them.

    Attributes:
        poll: Seconds between two looks at a cluster that starts; tests shorten it.
    """

    poll: float = 2.0

    def __init__(self, events: ClusterEvents) -> None:
        self._events = events
        self._loading = anyio.Lock()
        self._loaded: dict[str, LoadedPlugin] = {}
        self._plans = PluginPlans()
        # Of clusters that no sweep finds, or that could not be deleted: when to delete them.
        self._unreleased: dict[ClusterRef, float] = {}
        self._places = PluginPlaces()
        self._of_pool: SweptPlace | None = None

    async def plan(
        self,
        configuration: RayJobConfiguration,
        job_id: str | None,
        recorded: ClusterRef | None = None,
    ) -> ClusterPlan | None:
        """Return the cluster that the attempt has or will have, by name; None if it asks for none.

        Raises:
            ClusterSourceMissing: The plugin is not installed, or cannot be loaded.
            InvalidConfiguration: Its fields cannot work.
        """
        given = configuration.cluster_source
        if given is None:
            return None
        loaded = await self._load(given[TYPE])
        fields = loaded.fields(given)
        run_id = None if job_id is None else run_in(job_id)
        place, ref, asked = loaded.place(fields), None, None
        if job_id is not None and run_id is not None:
            name = own_cluster_name(job_id)
            ref = ClusterRef(loaded.name, name, place.home)
            asked = AskedCluster(name, fields, run_id, configuration.labels.get(_POOL_LABEL, ""))
        plan = PluginPlan(
            None,
            ref,
            is_on_demand=True,
            is_for_one_run=True,
            only_here=platform.node() if loaded.plugin.only_here else None,
            home=place.home,
            loaded=loaded,
            asked=asked,
            fields=fields,
            start_timeout=float(given.get(START_TIMEOUT, DEFAULT_START_TIMEOUT)),
            kept=float(given.get(KEEP_FAILED, 0)),
        )
        self._places.planned(place, plan)
        if job_id is None:
            self._renew_pool(place, fields, lists=loaded.lists)
        self._plans.add(plan)
        return plan

    def _renew_pool(self, place: SweptPlace, fields: BaseModel, *, lists: bool) -> None:
        """Ask no more with a secret of the pool that was renewed: it may be refused by now."""
        before, self._of_pool = self._of_pool, place
        # Where the other fields changed, the earlier place can still have clusters.
        if before in (None, place) or before[:2] != place[:2]:
            return
        if not lists:  # nothing will tell whether it is the same account
            self._replace(before, place, fields)
        elif self._places.is_empty(before) and not self._plans.planned_in(before):
            self._places.forget(before, place)
        # Else the sweep finds out: the new secret can be another account's.

    def _replace(
        self,
        old: SweptPlace,
        new: SweptPlace,
        fields: BaseModel,
        names: frozenset[str] | None = None,
    ) -> None:
        """Ask in the new place only; clusters (all, or some by name) are deleted there, too."""
        for planned in self._plans.planned_in(old):
            plan, loaded, asked = complete(planned)
            if names is None or asked.name in names:
                self._plans.renew(plan, fields)
            else:  # the new place does not have it
                self._unreleased.pop(ClusterRef(loaded.name, asked.name), None)
        self._places.forget(old, new)

    async def acquire(self, plan: ClusterPlan, progress: StartProgress) -> Cluster:
        """Have the planned cluster made, unless it is there, and return it when it takes jobs.

        Raises:
            ClusterFailed: It cannot be made, or did not take jobs in time.
        """
        plan, loaded, asked = complete(plan)
        waited = (datetime.now(UTC) - progress.began).total_seconds()
        scope = anyio.move_on_after(max(plan.start_timeout - waited, 1.0))
        cluster: Cluster | None = None
        try:
            with scope:
                cluster = await self._acquired(plan, progress)
        except ClusterFailed:
            raise
        except Exception as exc:
            why = f"The source {loaded.name!r} ({loaded.package}) cannot make {asked.name}: "
            raise _failed(Category.CLUSTER_SOURCE_FAILED, why + said_by(exc)) from exc
        if cluster is None:
            raise _failed(
                Category.CLUSTER_START_TIMEOUT,
                f"The cluster {asked.name} of the source {loaded.name!r} did not take jobs within "
                f"{plan.start_timeout:g} s (cluster_source.{START_TIMEOUT}).",
            )
        return cluster

    async def _acquired(self, plan: PluginPlan, progress: StartProgress) -> Cluster:
        plan, loaded, asked = complete(plan)
        ref = ClusterRef(loaded.name, asked.name)
        await self._end_earlier(plan)
        await progress.happened(ClusterHappening.REQUESTED, ref)
        is_there = await self.look(plan) is not None
        connection = cast("Any", await loaded.plugin.acquire(asked, progress.waits))
        if not isinstance(connection, Connection):  # a plugin need not have types
            raise TypeError("acquire returned no Connection. Return one")
        if not is_there:
            progress.tell(f"The source {loaded.name!r} has made the cluster {asked.name}.")
        await progress.happened(ClusterHappening.CREATED, ref, is_news=not is_there)
        while silence := await silence_of(connection):
            progress.waits(f"Cluster {asked.name}: it does not take jobs yet ({silence}).")
            await anyio.sleep(self.poll)
        return cluster_of(plan, connection)

    async def look(self, plan: ClusterPlan) -> Cluster | None:
        """Return the planned cluster if it exists, whether or not it takes jobs.

        Raises:
            ClusterSourceUnclear: The plugin does not say whether it exists.
        """
        if not isinstance(plan, PluginPlan) or plan.asked is None:
            return None
        plan, loaded, asked = complete(plan)
        connection = await loaded.ask(lambda p: p.look(asked))
        return None if connection is None else cluster_of(plan, connection)

    async def why_gone(self, ref: ClusterRef) -> str | None:
        """Return why a cluster is certainly gone, as a clause."""
        plan = self._plans.of(ref)
        if plan is None:
            return None
        _, loaded, asked = complete(plan)
        try:
            return await loaded.ask(lambda p: p.why_gone(asked))
        except ClusterSourceUnclear as exc:
            _log.debug("%s", exc)
            return None

    async def release(self, ref: ClusterRef, *, failed: bool) -> str | None:
        """Have the cluster of a run that has ended deleted, or leave it for a look if it failed."""
        plan = self._plans.of(ref)
        if plan is None:
            return _said_of_elsewhere(ref) if ref in self._plans else None
        if failed and plan.kept:
            said = f"The cluster {ref} stays for {plan.kept:g} s, for a look at it ({KEEP_FAILED})."
            if plan.loaded is None or plan.loaded.lists:
                return said
            self._unreleased[ref] = anyio.current_time() + plan.kept
            return f"{said} If this worker is stopped before, delete it yourself."
        try:
            await self._delete(plan, "Its run has ended.")
        except ClusterSourceUnclear as exc:
            self._unreleased[ref] = anyio.current_time()
            return f"The cluster {ref} is not deleted yet: {exc}"
        return f"Deleting the cluster {ref}."

    async def take_over(self, tell: Tell) -> None:
        """Do nothing: what earlier workers have left is found by the sweep."""

    async def sweep(
        self, view: PoolView, pool_configuration: RayJobConfiguration | None, tell: Tell
    ) -> None:
        """Have clusters of the pool deleted that nobody needs any more.

        Raises:
            ClusterSourceUnclear: A plugin could not be asked.
            InvalidConfiguration: The pool's own plugin is missing, or its fields cannot work.
            Exception: Prefect did not answer. In each case, the other plugins had their turn.
        """
        trouble = Trouble()
        if pool_configuration is not None:
            with trouble.kept():
                await self.plan(pool_configuration, None)
        for place in self._places.newest_first():
            with trouble.kept():
                await self._sweep_or_forget(place, view, tell)
        # Last: the sweep may have found out which key is the present one.
        now = anyio.current_time()
        for ref in [ref for ref, due in self._unreleased.items() if due <= now]:
            with trouble.kept():
                await self._delete_unreleased(ref)
        trouble.raise_first()

    async def close(self, tell: Tell, ended: frozenset[str]) -> None:
        """Close the plugins. Clusters stay for the runs that go on, and their next worker."""
        for loaded in self._loaded.values():
            try:
                await loaded.ask(lambda p: p.close())
            except ClusterSourceUnclear as exc:
                tell(str(exc))
        self._loaded.clear()
        self._plans.clear()

    async def examine(self, configuration: RayJobConfiguration) -> AsyncIterator[str]:
        """Yield what the plugin of a pool finds in order; see `ClusterPlugin.examine`.

        Raises:
            RayWorkerError: What is not in order.
        """
        plan = await self.plan(configuration, None)
        if not isinstance(plan, PluginPlan) or plan.loaded is None:
            return
        loaded = plan.loaded
        yield f"The source {loaded.name!r} is installed: {loaded.package}."
        fields = loaded.fields(configuration.cluster_source or {})
        try:
            async for sentence in loaded.plugin.examine(fields):
                yield sentence
        except Exception as exc:
            raise ClusterSourceUnclear(said_by(exc)) from exc

    async def _load(self, name: str) -> LoadedPlugin:
        async with self._loading:
            if name not in self._loaded:
                # In a thread: it can import a cloud's whole library.
                self._loaded[name] = await anyio.to_thread.run_sync(load_plugin, name)
            return self._loaded[name]

    async def _delete(self, plan: PluginPlan, why: str) -> None:
        plan, loaded, asked = complete(plan)
        await loaded.ask(lambda p: p.release(asked))
        ref = ClusterRef(loaded.name, asked.name)
        self._plans.forget(ref)
        self._unreleased.pop(ref, None)
        self._places.deleted(loaded.name, asked.name)
        happening = ClusterHappening.DELETING
        await self._events.tell(happening, ref, run_id=asked.run_id, message=why)

    async def _delete_unreleased(self, ref: ClusterRef) -> None:
        plan = self._plans.of(ref)
        if plan is None:
            self._unreleased.pop(ref, None)
        else:
            await self._delete(plan, "Its run has ended.")

    async def _end_earlier(self, plan: PluginPlan) -> None:
        """Have the clusters of earlier attempts at the run deleted: they may be why they failed."""
        plan, loaded, asked = complete(plan)
        if not loaded.lists:
            await self._end_unreleased(asked)
        for made in await loaded.ask(lambda p: p.made(asked.fields, asked.pool_id)):
            of = run_of_cluster_name(made.name)
            if of is not None and of[0] == asked.run_id and made.name != asked.name:
                await self._delete(plan_of(plan, made), "Its run begins again.")

    async def _end_unreleased(self, asked: AskedCluster[Any]) -> None:
        for ref in list(self._unreleased):
            of = run_of_cluster_name(ref.name)
            earlier = self._plans.of(ref)
            if of is None or of[0] != asked.run_id or ref.name == asked.name or earlier is None:
                continue
            try:
                await self._delete(earlier, "Its run begins again.")
            except ClusterSourceUnclear as exc:
                self._unreleased[ref] = anyio.current_time()
                _log.warning("The cluster %s is not deleted yet: %s", ref, exc)

    async def _sweep_or_forget(self, place: SweptPlace, view: PoolView, tell: Tell) -> None:
        if place not in self._places:
            return
        trouble = Trouble()
        with trouble.kept():
            sweep = PluginSweep(place, self._places, view, tell, self._events, self._delete)
            await sweep.run()
        if place not in self._places:
            return  # meanwhile the pool got a new key, and another place has taken over
        if place != self._of_pool:
            successor = self._places.successor(place)
            fields = None if successor is None else self._places.plan(successor).fields
            if successor is not None and fields is not None:
                self._replace(place, successor, fields, self._places.names(successor))
                return
            if self._places.is_idle(place):
                self._places.forget(place)
            elif self._places.is_hopeless(place):
                names = ", ".join(sorted(self._places.names(place))) or "none"
                why = trouble.first
                tell(f"Not swept any more, after a day: {why} Clusters seen there: {names}.")
                left = self._plans.planned_in(place)
                for ref in {p.ref for p in left if p.ref is not None}:
                    self._unreleased.pop(ref, None)
                self._places.forget(place)
                return
        trouble.raise_first()


def _failed(category: Category, cause: str) -> ClusterFailed:
    return ClusterFailed(str(diagnosed(category, cause)), category=category.label)


def _said_of_elsewhere(ref: ClusterRef) -> str:
    return (
        f"The cluster {ref} is left to the sweep: its run has other fields in cluster_source now "
        "than when it was made. If they name another place, delete the cluster there."
    )
