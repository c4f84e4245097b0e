"""`PluginPlaces`: which places of plugins a worker need not sweep any more. Pure but for the clock.

A deployment can take a key from a block that is renewed each hour, or fields that differ from run
to run. Each of them is one more place to sweep, and a revoked key is refused in each sweep.
"""

from collections.abc import Iterable

import anyio

from prefect_ray_worker.clusters.installed import SweptPlace
from prefect_ray_worker.clusters.unneeded import DRAIN_SECONDS

# For so long after its last run, a place is asked that does not answer, and that no other replaces.
_HOPE_SECONDS = 24 * 3600.0


class PluginPlaces:
    """Remembers of each place when a run was planned there, and what it answered last."""

    def __init__(self) -> None:
        self._planned_at: dict[SweptPlace, float] = {}
        self._needed_until: dict[SweptPlace, float] = {}
        self._listed: dict[SweptPlace, frozenset[str]] = {}
        self._silent: set[SweptPlace] = set()

    def planned(self, place: SweptPlace, start_timeout: float) -> None:
        """Note that a run is planned there, whose cluster appears within a start timeout."""
        now = anyio.current_time()
        until = max(self._needed_until.get(place, now), now + start_timeout + DRAIN_SECONDS)
        self._planned_at[place], self._needed_until[place] = now, until

    def answered(self, place: SweptPlace, names: Iterable[str]) -> None:
        """Note which clusters a place has."""
        self._listed[place] = frozenset(names)
        self._silent.discard(place)

    def failed(self, place: SweptPlace) -> None:
        """Note that a place did not say which clusters it has."""
        self._silent.add(place)

    def deleted(self, name: str) -> None:
        """Note that a cluster is deleted, wherever it was."""
        self._listed = {place: names - {name} for place, names in self._listed.items()}

    def forget(self, place: SweptPlace) -> None:
        """Keep no notes about a place."""
        for notes in (self._planned_at, self._needed_until, self._listed):
            notes.pop(place, None)
        self._silent.discard(place)

    def newest_first(self, places: Iterable[SweptPlace]) -> list[SweptPlace]:
        """Return places in the order in which to ask them: each after its successor."""
        return sorted(places, key=lambda place: self._planned_at.get(place, 0.0), reverse=True)

    def names(self, place: SweptPlace) -> frozenset[str]:
        """Return the clusters that a place had when it last answered."""
        return self._listed.get(place, frozenset())

    def is_idle(self, place: SweptPlace) -> bool:
        """Return whether a place has just answered that it is empty, and is not used by a run."""
        past = anyio.current_time() >= self._needed_until.get(place, 0.0)
        return past and place in self._listed and not (place in self._silent or self.names(place))

    def is_hopeless(self, place: SweptPlace) -> bool:
        """Return whether a place does not answer, and no run has been planned there for a day."""
        last = self._planned_at.get(place, 0.0)
        return place in self._silent and anyio.current_time() >= last + _HOPE_SECONDS

    def successor(self, place: SweptPlace) -> SweptPlace | None:
        """Return the place that is the same with a renewed secret; None if there is none.

        Two accounts can differ in nothing but the key. The names of clusters tell: no two accounts
        have a cluster for the same attempt. Where nothing is known to be, a refusal is enough.
        """
        ours = self.names(place)
        for other in self.newest_first(self._planned_at):
            if self._planned_at[other] <= self._planned_at.get(place, 0.0):
                return None
            if other[:2] != place[:2] or other in self._silent or other not in self._listed:
                continue
            theirs = self.names(other)
            if place in self._silent:
                has_replaced = not ours or not ours.isdisjoint(theirs)
            else:
                has_replaced = bool(ours) and ours <= theirs
            if has_replaced:
                return other
        return None
