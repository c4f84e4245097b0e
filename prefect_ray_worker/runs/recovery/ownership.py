"""Which worker looks after which run: pure, decided from what every worker can read.

The worker that submits a run owns it, and says so in a label on the flow run. When that worker
is not online any more, the run falls to one heir: the online worker that comes first for it by
rendezvous hashing, so that all come to the same answer without talking to each other, and the
runs of a dead worker spread over the living.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

OWNER_LABEL = "prefect-ray-worker.owner"
# Given by Prefect's own worker when it begins to submit a run (3.8.8).
_SUBMITTER_LABEL = "prefect.worker.name"
_NONE = "-"


@dataclass(frozen=True)
class Worker:
    """One process of a worker. A worker that is started again has its name, and is another.

    Attributes:
        name: As Prefect knows it.
        instance: Random; differs for each process. Without white space.
    """

    name: str
    instance: str


@dataclass(frozen=True)
class Owner:
    """Who looks after a run, as far as its labels tell.

    Attributes:
        name: The worker's name; None if no worker has got as far as saying so.
        instance: Its process; None if only Prefect's own label tells.
        host: The machine whose own Ray has the job; None for a cluster that others can reach.
    """

    name: str | None
    instance: str | None = None
    host: str | None = None


NOBODY = Owner(None)


class Decision(Enum):
    """What a worker does about a run."""

    KEEP = "keep"
    """It follows the run, and goes on."""

    TAKE = "take"
    """Nobody follows the run, and it is the one to do so."""

    DROP = "drop"
    """It follows the run, and another worker has taken it over meanwhile."""

    LEAVE = "leave"
    """It is not its business."""


def label_of(worker: Worker, attempt: str, host: str | None = None) -> str:
    """Return the value of `OWNER_LABEL` by which a worker claims an attempt at a run.

    Args:
        worker: The worker.
        attempt: The attempt.
        host: The machine whose own Ray has the job, if no other machine can ask that Ray.
    """
    return f"{attempt} {worker.instance} {host or _NONE} {worker.name}"


def given_up_label(worker: Worker, attempt: str, host: str | None = None) -> str:
    """Return the value of `OWNER_LABEL` by which a worker gives up an attempt at a run."""
    return label_of(Worker(worker.name, _NONE), attempt, host)


def owner_in(labels: Mapping[str, object], attempt: str) -> Owner:
    """Return the owner of an attempt at a run.

    Args:
        labels: The flow run's labels. They stay from one attempt to the next.
        attempt: The attempt.
    """
    labelled = labelled_owner(labels)
    if labelled is not None and labelled[0] == attempt:
        return labelled[1]
    submitter = labels.get(_SUBMITTER_LABEL)
    return Owner(str(submitter)) if submitter else NOBODY


def labelled_owner(labels: Mapping[str, object]) -> tuple[str, Owner] | None:
    """Return the attempt and the owner that a run's label names, be it the present or not."""
    parts = str(labels.get(OWNER_LABEL, "")).split(" ", maxsplit=3)
    if len(parts) != 4:
        return None
    attempt, instance, host, name = parts
    owner = Owner(name or None, _none_if_empty(instance), _none_if_empty(host))
    return attempt, owner


def is_given_up(labels: Mapping[str, object], attempt: str) -> bool:
    """Say whether the worker of an attempt has given it up, as one does that is stopped."""
    labelled = labelled_owner(labels)
    return labelled is not None and labelled[0] == attempt and labelled[1].instance is None


def heir(run_id: UUID, online: Collection[str]) -> str | None:
    """Return the worker to whom an orphaned run falls; None if none is online."""
    return max(online, key=lambda name: _weight(run_id, name), default=None)


def decide(
    owner: Owner,
    me: Worker,
    online: frozenset[str],
    *,
    run_id: UUID,
    follows: bool,
    starting: bool,
    settled: bool,
    given_up: bool = False,
) -> Decision:
    """Say what a worker does about a run.

    Args:
        owner: The owner of the run's present attempt.
        me: The worker that decides.
        online: Names of the workers of the pool that are online.
        run_id: The run.
        follows: Whether the worker's own process follows or submits this very attempt.
        starting: Whether this is the worker's first look since it was started: what has its
            name and was there before is its predecessor's.
        settled: Whether the attempt is old enough for its label to have been written.
        given_up: Whether its worker has given it up.
    """
    heirs = online if owner.host is None else frozenset({me.name})
    if given_up and len(heirs) > 1:
        # Prefect counts a worker that has just been stopped as online for a while.
        heirs -= {owner.name}
    if owner.instance == me.instance:
        return Decision.KEEP if follows else Decision.TAKE
    if owner.instance is None:
        if follows:
            return Decision.KEEP
        if owner.name == me.name and starting:
            return Decision.TAKE
        # Its worker died between its claim and its label, or has given it up. One that is still
        # at it loses nothing: whoever submits, it is the same job.
        orphaned = settled or given_up or (owner.name is not None and owner.name not in online)
        return Decision.TAKE if orphaned and heir(run_id, heirs) == me.name else Decision.LEAVE
    if owner.name == me.name and starting:
        return Decision.TAKE
    if owner.name not in online and heir(run_id, heirs) == me.name:
        return Decision.TAKE
    return Decision.DROP if follows else Decision.LEAVE


def _none_if_empty(part: str) -> str | None:
    return None if part == _NONE else part


def _weight(run_id: UUID, name: str) -> bytes:
    return hashlib.sha256(f"{run_id} {name}".encode()).digest()
