"""`PluginPlaces`: which places of plugins a worker need not sweep any more. Pure but for the clock.

A deployment can take a key from a block that is renewed each hour, or fields that differ from run
to run. Each of them is one more place to sweep, and a revoked key is refused in each sweep.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import anyio

from prefect_ray_worker.clusters.installed import SweptPlace
from prefect_ray_worker.clusters.plugin_plan import PluginPlan
from prefect_ray_worker.clusters.turns import SweepTurns
from prefect_ray_worker.clusters.unneeded import DRAIN_SECONDS

# For so long after its last run, a place is asked that does not answer, and that no other replaces.
_HOPE_SECONDS = 24 * 3600.0


@dataclass
class _Notes:
    """What is known of one place.

    Attributes:
        plan: Has the source and the fields to ask it with.
        planned_at: When the last run was planned there.
        needed_until: Until then, a cluster of that run can appear.
        listed: The clusters that it had when it last answered; None if it has not.
        seen: Those, and what was deleted since: what it lists no more has gone.
        is_silent: Whether it did not answer the last time.
        turns: Says what this worker deletes there.
    """

    plan: PluginPlan
    planned_at: float = 0.0
    needed_until: float = 0.0
    listed: frozenset[str] | None = None
    seen: set[str] = field(default_factory=set[str])
    is_silent: bool = False
    turns: SweepTurns = field(default_factory=SweepTurns)


class PluginPlaces:
    """Remembers of each place when a run was planned there, and what it answered last."""

    def __init__(self) -> None:
        self._notes: dict[SweptPlace, _Notes] = {}

    def __contains__(self, place: SweptPlace) -> bool:
        return place in self._notes

    def planned(self, place: SweptPlace, plan: PluginPlan) -> None:
        """Note that a run is planned there, whose cluster appears within a start timeout.

        The plan of the pool itself counts, and else the first.
        """
        notes = self._notes.setdefault(place, _Notes(plan))
        if plan.asked is None:
            notes.plan = plan
        now = anyio.current_time()
        notes.planned_at = now
        until = now + plan.start_timeout + DRAIN_SECONDS
        notes.needed_until = max(notes.needed_until, until)

    def plan(self, place: SweptPlace) -> PluginPlan:
        """Return a plan with the source and the fields to sweep a place with."""
        return self._notes[place].plan

    def turns(self, place: SweptPlace) -> SweepTurns:
        """Return what counts the sweeps of a place."""
        return self._notes[place].turns

    def answered(self, place: SweptPlace, names: Iterable[str]) -> set[str]:
        """Note which clusters a place has; return those that have gone since it was last asked."""
        notes, present = self._notes[place], frozenset(names)
        gone = notes.seen - present
        notes.listed, notes.seen, notes.is_silent = present, set(present), False
        return gone

    def failed(self, place: SweptPlace) -> None:
        """Note that a place did not say which clusters it has."""
        self._notes[place].is_silent = True

    def deleted(self, source: str, name: str) -> None:
        """Note that a cluster of a source is deleted, wherever it was."""
        for place, notes in self._notes.items():
            if place.source == source:
                notes.seen.add(name)
                if notes.listed is not None:
                    notes.listed -= {name}

    def forget(self, place: SweptPlace, successor: SweptPlace | None = None) -> None:
        """Keep no notes about a place; the one that takes over gets those about its clusters."""
        old = self._notes.pop(place, None)
        if old is None or successor is None:
            return
        new = self._notes[successor]
        new.seen |= old.seen
        if new.listed is None:
            new.turns = old.turns

    def newest_first(self) -> list[SweptPlace]:
        """Return the places in the order in which to ask them: each after its successor."""
        return sorted(self._notes, key=lambda place: self._notes[place].planned_at, reverse=True)

    def names(self, place: SweptPlace) -> frozenset[str]:
        """Return the clusters that a place had when it last answered."""
        return self._notes[place].listed or frozenset()

    def is_empty(self, place: SweptPlace) -> bool:
        """Return whether a place has answered that it has no cluster."""
        return self._notes[place].listed == frozenset()

    def is_idle(self, place: SweptPlace) -> bool:
        """Return whether a place has just answered that it is empty, and is not used by a run."""
        notes = self._notes[place]
        is_past = anyio.current_time() >= notes.needed_until
        return is_past and self.is_empty(place) and not notes.is_silent

    def is_hopeless(self, place: SweptPlace) -> bool:
        """Return whether a place does not answer, and no run has been planned there for a day."""
        notes = self._notes[place]
        return notes.is_silent and anyio.current_time() >= notes.planned_at + _HOPE_SECONDS

    def successor(self, place: SweptPlace) -> SweptPlace | None:
        """Return the place that is the same with a renewed secret; None if there is none.

        Two accounts can differ in nothing but the key. The names of clusters tell: no two accounts
        have a cluster for the same attempt. Where nothing is known to be, a refusal is enough.
        """
        ours, is_silent = self.names(place), self._notes[place].is_silent
        for other in self._later_than(place):
            theirs = self.names(other)
            if is_silent:
                has_replaced = not ours or not ours.isdisjoint(theirs)
            else:
                has_replaced = bool(ours) and ours <= theirs
            if has_replaced:
                return other
        return None

    def _later_than(self, place: SweptPlace) -> Iterator[SweptPlace]:
        """Yield the places with the same fields, used later, that have just answered."""
        for other in self.newest_first():
            notes = self._notes[other]
            if notes.planned_at <= self._notes[place].planned_at:
                return
            if other[:2] == place[:2] and notes.listed is not None and not notes.is_silent:
                yield other
