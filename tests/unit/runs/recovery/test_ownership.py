"""Which worker looks after which run: every worker decides alike, from what all can read."""

from uuid import UUID, uuid4

import pytest

from prefect_ray_worker.runs.recovery.ownership import (
    OWNER_LABEL,
    Decision,
    Owner,
    Worker,
    decide,
    given_up_label,
    heir,
    is_given_up,
    label_of,
    owner_in,
)

ME = Worker("RayWorker me", "aaa")
RUN = UUID(int=7)


def decided(owner: Owner, online: set[str], **facts: bool) -> Decision:
    facts = {"follows": False, "starting": False, "settled": True, **facts}
    return decide(owner, ME, frozenset(online), run_id=RUN, **facts)


def test_label_reads_back_for_its_own_attempt_only() -> None:
    labels = {OWNER_LABEL: label_of(ME, "0123456789ab", "node-7"), "prefect.worker.name": "newer"}
    assert owner_in(labels, "0123456789ab") == Owner("RayWorker me", "aaa", "node-7")
    assert owner_in(labels, "ba9876543210") == Owner("newer"), "a label outlives its attempt"
    assert owner_in({}, "0123456789ab") == Owner(None)


def test_given_up_label_keeps_the_name_and_the_host() -> None:
    labels = {OWNER_LABEL: given_up_label(ME, "0123456789ab", "node-7")}
    assert owner_in(labels, "0123456789ab") == Owner("RayWorker me", None, "node-7")
    assert is_given_up(labels, "0123456789ab")
    assert not is_given_up(labels, "ba9876543210")
    assert not is_given_up({OWNER_LABEL: label_of(ME, "0123456789ab")}, "0123456789ab")


def test_every_orphan_has_one_heir_and_all_workers_agree() -> None:
    online = {f"worker {i}" for i in range(5)}
    heirs = [heir(uuid4(), online) for _ in range(500)]
    counts = {name: heirs.count(name) for name in online}
    assert sum(counts.values()) == 500
    assert min(counts.values()) > 50, "the runs of a dead worker spread over the living"
    run = uuid4()
    assert heir(run, sorted(online)) == heir(run, sorted(online, reverse=True))
    assert heir(run, set()) is None


def test_a_worker_that_leaves_moves_its_own_runs_only() -> None:
    online = {f"worker {i}" for i in range(5)}
    runs = [uuid4() for _ in range(200)]
    before = {run: heir(run, online) for run in runs}
    after = {run: heir(run, online - {"worker 3"}) for run in runs}
    assert all(after[run] == before[run] for run in runs if before[run] != "worker 3")


@pytest.mark.parametrize(
    ("owner", "online", "facts", "decision"),
    [
        # Ours.
        (Owner(ME.name, "aaa"), {ME.name}, {"follows": True}, Decision.KEEP),
        (Owner(ME.name, "aaa"), {ME.name}, {}, Decision.TAKE),  # its following has failed
        # A predecessor's of our name: at our start its runs are ours; later it is a live twin.
        (Owner(ME.name, "bbb"), {ME.name}, {"starting": True}, Decision.TAKE),
        (Owner(ME.name, "bbb"), {ME.name}, {}, Decision.LEAVE),
        (Owner(ME.name, "bbb"), {ME.name}, {"follows": True}, Decision.DROP),
        # Another worker's.
        (Owner("other", "ccc"), {ME.name, "other"}, {}, Decision.LEAVE),
        (Owner("other", "ccc"), {ME.name, "other"}, {"follows": True}, Decision.DROP),
        (Owner("other", "ccc"), {ME.name}, {}, Decision.TAKE),
        # Claimed and not labelled yet.
        (Owner("other"), {ME.name, "other"}, {"settled": False}, Decision.LEAVE),
        (Owner("other"), {ME.name}, {"settled": False}, Decision.TAKE),
        (Owner(None), {ME.name}, {"settled": False}, Decision.LEAVE),
        (Owner(None), {ME.name}, {}, Decision.TAKE),
        (Owner(ME.name), {ME.name}, {"settled": False, "follows": True}, Decision.KEEP),
        (Owner(ME.name), {ME.name}, {"settled": False, "starting": True}, Decision.TAKE),
        (Owner(ME.name), {ME.name}, {"settled": False}, Decision.LEAVE),
        # Given up by a worker that still counts as online, and is no heir of its own runs then.
        (Owner("other"), {ME.name, "other"}, {"settled": False, "given_up": True}, Decision.TAKE),
        (Owner(ME.name), {ME.name, "x"}, {"settled": False, "given_up": True}, Decision.LEAVE),
        (Owner(ME.name), {ME.name}, {"settled": False, "given_up": True}, Decision.TAKE),
        # On the own Ray of this machine, where no other worker can ask.
        (Owner("dead", "ddd", "here"), {ME.name, "a", "b", "c"}, {}, Decision.TAKE),
    ],
)
def test_table(owner: Owner, online: set[str], facts: dict[str, bool], decision: Decision) -> None:
    assert decided(owner, online, **facts) == decision


def test_only_the_heir_takes_an_orphan() -> None:
    online = {ME.name, *(f"worker {i}" for i in range(5))}
    taken = 0
    for _ in range(300):
        run = uuid4()
        decision = decide(
            Owner("dead", "ddd"),
            ME,
            frozenset(online),
            run_id=run,
            follows=False,
            starting=False,
            settled=True,
        )
        assert (decision is Decision.TAKE) == (heir(run, online) == ME.name)
        taken += decision is Decision.TAKE
    assert 0 < taken < 300
