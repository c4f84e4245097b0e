"""Which worker looks after which run: every worker decides alike, from what all can read."""

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_ray_worker.runs.recovery.labels import (
    Owner,
    Worker,
)
from prefect_ray_worker.runs.recovery.ownership import Decision, Facts, Place, decide, heir, heirs

ME = Worker("RayWorker me", "aaa", "here")
RUN = UUID(int=7)
ALONE = frozenset({ME.name})
WITH_OTHER = frozenset({ME.name, "other"})
MINE = Owner(ME.name, "aaa")
TWINS = Owner(ME.name, "bbb")
OTHERS = Owner("other", "ccc")
HOUR = 3600.0


def facts(**known: Any) -> Facts:
    """Return facts of a run whose attempt is known, and that is Running on our cluster."""
    known = {"online": WITH_OTHER, "spoke": True, "label_is_current": True, **known}
    return Facts(RUN, ME, **{"place": Place.OURS, "predates_me": False, **known})


def claimed(**known: Any) -> Facts:
    """Return facts of a run that was claimed and not labelled, as far as can be told."""
    return facts(**{"spoke": False, "pending": True, "label_is_current": False, **known})


def unread(**known: Any) -> Facts:
    """Return facts of a run whose history has not been read."""
    known = {"label_is_current": None, "predates_me": None, "place": None, **known}
    return facts(**known)


def test_every_orphan_has_one_heir_and_all_workers_agree() -> None:
    online = {f"worker {i}" for i in range(5)}
    first = [heir(uuid4(), online) for _ in range(500)]
    counts = {name: first.count(name) for name in online}
    assert sum(counts.values()) == 500
    assert min(counts.values()) > 50, "the runs of a dead worker spread over the living"
    run = uuid4()
    assert heirs(run, sorted(online)) == heirs(run, sorted(online, reverse=True))
    assert heir(run, set()) is None


def test_a_worker_that_leaves_moves_its_own_runs_only() -> None:
    online = {f"worker {i}" for i in range(5)}
    runs = [uuid4() for _ in range(200)]
    before = {run: heir(run, online) for run in runs}
    after = {run: heir(run, online - {"worker 3"}) for run in runs}
    assert all(after[run] == before[run] for run in runs if before[run] != "worker 3")


@pytest.mark.parametrize(
    ("known", "decision"),
    [
        # Ours.
        (facts(labelled=MINE, follows=True), Decision.KEEP),
        (facts(labelled=MINE), Decision.TAKE),  # its following has failed
        (facts(labelled=TWINS, in_hand=True), Decision.LEAVE),  # Prefect has just given it to us
        # A predecessor's of our name is ours, whenever we find it; a younger twin's is not.
        (facts(labelled=TWINS, starting=True), Decision.TAKE),
        (facts(labelled=TWINS, predates_me=True), Decision.TAKE),
        (facts(labelled=TWINS, predates_me=None), Decision.READ_HISTORY),
        (facts(labelled=TWINS), Decision.LEAVE),
        (facts(labelled=TWINS, follows=True), Decision.DROP),
        # Another worker's.
        (facts(labelled=OTHERS), Decision.LEAVE),
        (facts(labelled=OTHERS, follows=True), Decision.DROP),
        (facts(labelled=OTHERS, online=ALONE), Decision.TAKE),
        (facts(labelled=OTHERS, online=ALONE, follows=True), Decision.TAKE),
        (facts(labelled=OTHERS, online=ALONE, over=True), Decision.TAKE),
        # Claimed and not labelled.
        (claimed(submitter="other"), Decision.LEAVE),
        (claimed(submitter="other", online=ALONE), Decision.TAKE),
        (claimed(submitter="other", online=ALONE, age=61), Decision.TAKE),
        (claimed(), Decision.LEAVE),
        (claimed(online=ALONE, age=61), Decision.TAKE),
        (claimed(online=ALONE, age=61, queueing=True), Decision.LEAVE),
        (claimed(online=ALONE, age=301, queueing=True), Decision.TAKE),
        (claimed(submitter=ME.name, follows=True), Decision.KEEP),
        (claimed(submitter=ME.name, starting=True), Decision.TAKE),
        (claimed(submitter=ME.name), Decision.LEAVE),
        # Labelled for an earlier attempt only: that owner has nothing to do with this one.
        (claimed(labelled=OTHERS, submitter="dead", online=ALONE), Decision.TAKE),
        (claimed(labelled=MINE, submitter="other"), Decision.LEAVE),
        # Given up by a worker that still counts as online, and is no heir of its own runs then.
        (facts(labelled=Owner("other", gave_up=True)), Decision.TAKE),
        (facts(labelled=Owner(ME.name, gave_up=True)), Decision.LEAVE),
        (facts(labelled=Owner(ME.name, gave_up=True), online=ALONE), Decision.TAKE),
        # On the own Ray of this machine, where no worker of another machine can ask.
        (facts(labelled=Owner("dead", "ddd", "here"), online=ALONE | {"a", "b"}), Decision.TAKE),
        # On the own Ray of another machine: buried once it has been silent for too long.
        (facts(labelled=Owner("other", "ccc", "there"), age=HOUR), Decision.LEAVE),
        (facts(labelled=Owner("dead", "ddd", "there"), online=ALONE, age=60), Decision.LEAVE),
        (facts(labelled=Owner("dead", "ddd", "there"), online=ALONE, age=HOUR), Decision.READ_LIFE),
        (
            facts(labelled=Owner("dead", "ddd", "there"), online=ALONE, age=HOUR, shows_life=True),
            Decision.LEAVE,
        ),
        (
            facts(labelled=Owner("dead", "ddd", "there"), online=ALONE, age=HOUR, shows_life=False),
            Decision.BURY,
        ),
        (
            facts(labelled=Owner("dead", "ddd", "there"), online=ALONE, age=HOUR, over=True),
            Decision.LEAVE,
        ),
    ],
)
def test_table(known: Facts, decision: Decision) -> None:
    assert decide(known) == decision


@pytest.mark.parametrize(
    ("known", "decision"),
    [
        # The label of a run whose driver has spoken is the present attempt's.
        (unread(labelled=OTHERS), Decision.LEAVE),
        (unread(labelled=OTHERS, follows=True), Decision.DROP),
        (unread(labelled=MINE, follows=True), Decision.KEEP),
        # A run is taken only after its history was read.
        (unread(labelled=MINE), Decision.READ_HISTORY),
        (unread(labelled=OTHERS, online=ALONE), Decision.READ_HISTORY),
        (unread(labelled=TWINS, starting=True), Decision.READ_HISTORY),
        # Without a sign that the present attempt was submitted, the label may be an earlier one's.
        (unread(labelled=OTHERS, spoke=False), Decision.READ_HISTORY),
        (unread(labelled=OTHERS, spoke=False, over=True), Decision.LEAVE),
        (unread(labelled=OTHERS, spoke=False, pending=True, submitter="other"), Decision.LEAVE),
        (
            unread(labelled=OTHERS, spoke=False, pending=True, submitter="dead"),
            Decision.READ_HISTORY,
        ),
        (
            unread(labelled=OTHERS, spoke=False, pending=True, submitter="other", age=301),
            Decision.READ_HISTORY,
        ),
        # Without a label: claimed a moment ago, or left behind.
        (unread(spoke=False, pending=True, submitter="other"), Decision.LEAVE),
        (unread(spoke=False, pending=True, submitter="other", age=301), Decision.READ_HISTORY),
        (unread(spoke=False, pending=True, submitter="dead"), Decision.READ_HISTORY),
        (unread(spoke=False, pending=True), Decision.READ_HISTORY),
        (unread(spoke=False, pending=True, queueing=True), Decision.LEAVE),
        (
            unread(spoke=False, pending=True, submitter=ME.name, starting=True),
            Decision.READ_HISTORY,
        ),
        (unread(), Decision.READ_HISTORY),
    ],
)
def test_history_is_read_only_where_the_answer_depends_on_it(
    known: Facts, decision: Decision
) -> None:
    assert decide(known) == decision


@pytest.mark.parametrize(
    ("place", "waited", "decision"),
    [
        (None, 0, Decision.READ_PLACE),
        (Place.OURS, 0, Decision.TAKE),
        (Place.ELSEWHERE, 0, Decision.WAIT),
        (Place.ELSEWHERE, HOUR, Decision.TAKE),
        (Place.FOREIGN, 0, Decision.WAIT),
        (Place.FOREIGN, HOUR, Decision.READ_LIFE),
        (Place.UNSERVED, HOUR, Decision.WAIT),
    ],
)
def test_a_worker_leaves_what_it_does_not_serve_to_those_that_do(
    place: Place | None, waited: float, decision: Decision
) -> None:
    known = facts(labelled=OTHERS, online=ALONE, place=place, orphaned_for=waited, age=waited)
    assert decide(known) == decision


def test_only_the_heir_takes_an_orphan_at_once() -> None:
    online = {ME.name, *(f"worker {i}" for i in range(5))}
    taken = 0
    for _ in range(300):
        run = uuid4()
        known = replace(facts(labelled=OTHERS, online=frozenset(online)), run_id=run)
        decision = decide(known)
        is_heir = heir(run, online) == ME.name
        assert decision == (Decision.TAKE if is_heir else Decision.WAIT)
        assert is_heir == (decide(replace(known, follows=True)) is Decision.TAKE)
        taken += decision is Decision.TAKE
    assert 0 < taken < 300


def test_the_other_heirs_take_an_orphan_in_their_turn() -> None:
    """The first heir may serve another queue, or another cluster, or may just have died."""
    run = next(r for r in (uuid4() for _ in range(999)) if _rank(r) == 2)
    known = replace(facts(labelled=OTHERS, online=ALONE | {"a", "b"}), run_id=run)
    waited = [decide(replace(known, orphaned_for=known.turn * n)) for n in (0, 1, 2)]
    assert waited == [Decision.WAIT, Decision.WAIT, Decision.TAKE]


def _rank(run: UUID) -> int:
    return heirs(run, [ME.name, "a", "b"]).index(ME.name)


def test_no_worker_takes_a_run_whose_caller_still_uploads_its_code() -> None:
    uploads = claimed(uploading=True, age=600.0, online=ALONE)
    assert decide(uploads) is Decision.LEAVE
    assert decide(replace(uploads, uploading=False)) is Decision.TAKE
    assert decide(replace(uploads, age=HOUR)) is Decision.READ_LIFE
    assert decide(replace(uploads, age=HOUR, shows_life=False)) is Decision.BURY
    given_up = Owner("caller", gave_up=True)
    submitted = facts(uploading=True, labelled=given_up, online=ALONE)
    assert decide(submitted) is Decision.TAKE, "its caller has submitted it and left"
