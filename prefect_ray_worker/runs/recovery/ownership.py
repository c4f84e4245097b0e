"""Decide which worker follows which run. Pure: every worker decides alike, from the same facts.

The worker that submits a run owns it, and says so in a label on the flow run. When that worker is
offline, the run falls to an heir: the online worker that comes first for it by rendezvous hashing.
So all workers come to the same answer without talking to each other, and the runs of a dead worker
spread over the living.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from prefect_ray_worker.runs.recovery.labels import NOBODY, Owner, Worker

REMEMBER_SECONDS = 24 * 3600.0
"""For so long after the end of a run, a worker still brings the rest of its log."""

# How many times longer a run may wait for its label that is one of hundreds.
_LONGER_IN_A_BURST = 5


class Place(Enum):
    """Where a run's job is, or goes, seen from the worker that decides."""

    OURS = "ours"
    """The cluster that this worker would use for the run."""

    ELSEWHERE = "elsewhere"
    """Another cluster has the job: a worker of that cluster is the better heir."""

    FOREIGN = "foreign"
    """It is not known to be submitted, and was to go to another cluster than this worker's."""

    UNSERVED = "unserved"
    """It was not submitted, and this worker does not serve the run's queue."""


class Decision(Enum):
    """What a worker does about a run. The `READ_…` ask for one more fact, and decide again."""

    KEEP = "keep"
    """It follows the run, and goes on."""

    TAKE = "take"
    """No worker follows the run, and this one begins to."""

    DROP = "drop"
    """It follows the run, and another worker has taken it over."""

    LEAVE = "leave"
    """The run is another worker's business."""

    WAIT = "wait"
    """No worker follows the run, and it is another worker's turn to take it."""

    BURY = "bury"
    """No worker that could follow the run is left, and the run has been silent for too long."""

    READ_HISTORY = "read history"
    """`Facts.label_is_current` and `Facts.predates_me` are needed."""

    READ_PLACE = "read place"
    """`Facts.place` is needed."""

    READ_LIFE = "read life"
    """`Facts.shows_life` is needed."""


@dataclass(frozen=True)
class Facts:
    """What a worker knows of a run when it decides about it.

    Attributes:
        run_id: The run.
        me: The worker that decides.
        online: Names of the workers of the pool that are online.
        labelled: The owner that the run's own label names; it may be an earlier attempt's.
        submitter: The worker that Prefect's label names; it may be an earlier attempt's.
        follows: Whether this process follows, or submits, the present attempt.
        in_hand: Whether Prefect has given this process the run, and it is not submitted yet.
        queueing: Whether Prefect has given this process runs that are not submitted yet.
        starting: Whether this is the process's first look since it was started.
        uploading: Whether the caller uploads the code before the attempt can be submitted.
        spoke: Whether the state shows that the attempt was submitted.
        pending: Whether the state is Pending.
        over: Whether the run has ended, and only its log, or its children, are left.
        age: Seconds since the run came into its state.
        orphaned_for: Seconds for which this process has been waiting for its turn.
        turn: Seconds that each heir has before it is the next one's turn.
        silence_limit: Seconds without a sign of life after which a run counts as dead.
        claim_grace: Seconds from its claim until a run without a label counts as nobody's.
        label_is_current: Whether the label is the present attempt's. None: not read yet.
        predates_me: Whether the attempt began before this process. None: not read yet.
        place: Where the job is, or goes. None: not read yet.
        shows_life: Whether the run gave a sign of life within the limit. None: not read yet.
    """

    run_id: UUID
    me: Worker
    online: frozenset[str]
    labelled: Owner | None = None
    submitter: str | None = None
    follows: bool = False
    in_hand: bool = False
    queueing: bool = False
    starting: bool = False
    uploading: bool = False
    spoke: bool = False
    pending: bool = False
    over: bool = False
    age: float = 0.0
    orphaned_for: float = 0.0
    turn: float = 60.0
    silence_limit: float = 3600.0
    claim_grace: float = 60.0
    label_is_current: bool | None = None
    predates_me: bool | None = None
    place: Place | None = None
    shows_life: bool | None = None

    @property
    def owner(self) -> Owner:
        """The owner of the present attempt, if the label is taken for the present one's."""
        if self.labelled is not None and self.label_is_current is not False:
            return self.labelled
        return Owner(self.submitter) if self.submitter else NOBODY

    @property
    def is_settled(self) -> bool:
        """Whether the run is old enough for its worker to have written the label.

        A worker labels a run within moments of its claim, unless the Prefect API is slow, or
        hundreds of runs wait for their turn before this one.
        """
        may_queue = self.submitter in self.online or self.queueing
        return self.age > self.claim_grace * (_LONGER_IN_A_BURST if may_queue else 1)

    @property
    def is_predecessors(self) -> bool:
        """Whether the owner has this worker's name and was there before: a process that has gone.

        Two workers of one name cannot be told apart from one that was restarted: the one that
        started last takes the runs of the other over.
        """
        same_name = self.owner.name == self.me.name and self.owner.instance != self.me.instance
        return same_name and (self.starting or self.predates_me is True)


def heirs(run_id: UUID | str, online: Collection[str]) -> list[str]:
    """Return the workers to whom an orphaned run falls, in the order of their turns."""
    return sorted(online, key=lambda name: _weight(run_id, name), reverse=True)


def heir(run_id: UUID | str, online: Collection[str]) -> str | None:
    """Return the worker whose turn is first; None if none is online.

    Args:
        run_id: The run, or the uid of a cluster.
        online: Names of the workers of the pool that are online.
    """
    return max(online, key=lambda name: _weight(run_id, name), default=None)


def decide(facts: Facts) -> Decision:
    """Say what a worker does about a run, or which fact it has to read first."""
    if facts.in_hand:
        return Decision.LEAVE
    if facts.label_is_current is not None:
        return _decide(facts)
    if facts.labelled is None:
        return Decision.LEAVE if _is_new(facts) else Decision.READ_HISTORY
    # The label is most likely the present attempt's; reading histories costs a request each.
    provisional = _decide(facts)
    untouched = provisional in (Decision.KEEP, Decision.LEAVE, Decision.DROP)
    return provisional if untouched and not _may_be_stale(facts) else Decision.READ_HISTORY


def _decide(facts: Facts) -> Decision:
    owner, me = facts.owner, facts.me
    if facts.uploading and facts.pending and owner.name is None:
        return _bury(facts, Decision.LEAVE)  # its caller says when it is to be submitted
    if owner.host not in (None, me.host):
        return _on_another_machine(facts)
    if owner.instance == me.instance:
        return Decision.KEEP if facts.follows else Decision.TAKE
    if owner.instance is None and facts.follows:
        return Decision.KEEP
    if facts.is_predecessors:
        return _take(facts, Decision.TAKE)
    if owner.instance is None:
        # Its worker died between its claim and its label, or gave it up. One that is still at it
        # loses nothing: whichever worker submits, it is the same job.
        offline = owner.name is not None and owner.name not in facts.online
        orphaned = facts.is_settled or owner.gave_up or offline
        return _in_turn(facts) if orphaned else Decision.LEAVE
    if owner.name == me.name and facts.predates_me is None:
        return Decision.READ_HISTORY  # a process of our name: has it gone, or is it younger?
    if owner.name not in facts.online:
        taken = _in_turn(facts)
        return Decision.DROP if facts.follows and taken is not Decision.TAKE else taken
    return Decision.DROP if facts.follows else Decision.LEAVE


def _is_new(facts: Facts) -> bool:
    """Say whether a run without a label was claimed a moment ago, by a worker that is at it.

    In a burst there are hundreds, and to find out their attempts takes a request for each.
    """
    if not facts.pending or facts.is_settled:
        return False
    if facts.submitter is None:
        return facts.queueing  # it may be next
    predecessors = facts.starting and facts.submitter == facts.me.name
    return facts.submitter in facts.online and not predecessors


def _may_be_stale(facts: Facts) -> bool:
    """Say whether the label may be an earlier attempt's: no sign that this one was submitted."""
    if facts.spoke or facts.over:
        return False
    if not facts.pending:
        return True
    # Prefect's label is written before ours: another name in it is a later claim.
    submitter = facts.submitter
    another = facts.labelled is not None and submitter not in (None, facts.labelled.name)
    return facts.is_settled or (another and submitter not in facts.online)


def _on_another_machine(facts: Facts) -> Decision:
    """Decide about a job on the own Ray of another machine, where this worker cannot ask."""
    if facts.follows or facts.owner.name in facts.online:
        return Decision.LEAVE
    return _bury(facts, Decision.LEAVE)


def _bury(facts: Facts, otherwise: Decision) -> Decision:
    is_heir = heir(facts.run_id, facts.online) == facts.me.name
    if facts.over or facts.age < facts.silence_limit or not is_heir:
        return otherwise
    if facts.shows_life is None:
        return Decision.READ_LIFE
    return otherwise if facts.shows_life else Decision.BURY


def _in_turn(facts: Facts) -> Decision:
    """Take an orphan once it is this worker's turn.

    The first heir takes it at once. The others come after it, in case it cannot.
    """
    candidates = facts.online if facts.owner.host is None else frozenset({facts.me.name})
    if facts.owner.gave_up and len(candidates) > 1:
        # Prefect counts a worker that has just been stopped as online for a while.
        candidates -= {facts.owner.name}
    if facts.me.name not in candidates:
        return Decision.LEAVE
    order = heirs(facts.run_id, candidates)
    rank = order.index(facts.me.name)
    if facts.orphaned_for < rank * facts.turn:
        return Decision.WAIT
    last_resort = facts.orphaned_for >= (len(order) + rank) * facts.turn
    return _take(facts, Decision.TAKE if last_resort else Decision.WAIT)


def _take(facts: Facts, from_elsewhere: Decision) -> Decision:
    if facts.follows:
        return Decision.TAKE
    match facts.place:
        case None:
            return Decision.READ_PLACE
        case Place.OURS:
            return Decision.TAKE
        case Place.ELSEWHERE:
            return from_elsewhere
        case Place.FOREIGN:
            return _bury(facts, Decision.WAIT)
        case Place.UNSERVED:
            return Decision.WAIT


def _weight(run_id: UUID | str, name: str) -> bytes:
    return hashlib.sha256(f"{run_id} {name}".encode()).digest()
