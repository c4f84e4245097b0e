"""What workers write on a run for each other, and what they read from it."""

from uuid import UUID

import pytest

from prefect_ray_worker.runs.recovery.labels import (
    KEPT_LABEL,
    OWNER_LABEL,
    Owner,
    Worker,
    claimed_by,
    given_up_by,
    is_unfinished,
    kept_in,
    label_of,
    labelled_cluster,
    labelled_owner,
    owner_in,
    owner_labels,
    recorded_pid,
    unfinished_label,
)
from prefect_ray_worker.shared.ids import ClusterRef, InfrastructurePid, job_of_attempt

ME = Worker("RayWorker me", "aaa", "here")
ATTEMPT, OTHER = "0123456789ab", "ba9876543210"
HEAD = ClusterRef.of_address("http://head:8265")


def test_label_reads_back_for_its_own_attempt_only() -> None:
    labels = {OWNER_LABEL: label_of(ME, "0123456789ab", "node-7"), "prefect.worker.name": "newer"}
    assert owner_in(labels, "0123456789ab") == Owner("RayWorker me", "aaa", "node-7")
    assert owner_in(labels, "ba9876543210") == Owner("newer"), "a label outlives its attempt"
    assert owner_in({}, "0123456789ab") == Owner(None)


def test_given_up_label_keeps_the_name_and_the_host() -> None:
    labels = given_up_by(ME, "0123456789ab", "node-7")
    assert owner_in(labels, "0123456789ab") == Owner("RayWorker me", None, "node-7", gave_up=True)
    assert not owner_in({OWNER_LABEL: label_of(ME, "0123456789ab")}, "0123456789ab").gave_up


@pytest.mark.parametrize(
    ("label", "owner"),
    [
        ("0123456789ab aaa - RayWorker 1 of 2", Owner("RayWorker 1 of 2", "aaa")),
        ("0123456789ab aaa node-7 w", Owner("w", "aaa", "node-7")),
        ("0123456789ab - node-7 w", Owner("w", None, "node-7", gave_up=True)),
    ],
)
def test_label_of_an_older_release_is_read(label: str, owner: Owner) -> None:
    """A run in flight across an upgrade has the label that its worker wrote."""
    assert labelled_owner({OWNER_LABEL: label}) == ("0123456789ab", owner)


def test_each_attempt_keeps_its_owner() -> None:
    """A label for all attempts let the owner of an earlier one act on the newer one."""
    you = Worker("RayWorker you", "bbb", "there")
    mine, yours = Owner(ME.name, ME.instance), Owner(you.name, you.instance)
    labels = {**claimed_by(ME, ATTEMPT), **claimed_by(you, OTHER)}
    assert owner_in(labels, ATTEMPT) == mine
    assert labelled_owner(labels) == (OTHER, yours)
    labels |= given_up_by(ME, ATTEMPT)
    assert labelled_owner(labels) == (OTHER, yours)
    assert owner_in(labels, ATTEMPT).gave_up
    labels |= given_up_by(you, OTHER)
    named = labelled_owner(labels)
    assert named is not None
    assert named[1].gave_up, "seen by others at once"


@pytest.mark.parametrize("label", ["", "0123456789ab", "0123456789ab aaa -", 7])
def test_label_that_is_none_of_ours_names_no_owner(label: object) -> None:
    assert labelled_owner({OWNER_LABEL: label}) is None


def test_a_run_says_where_its_attempt_goes_and_that_it_is_unfinished() -> None:
    labels = owner_labels(ME, ATTEMPT, HEAD, None)
    assert owner_in(labels, ATTEMPT) == Owner(ME.name, ME.instance)
    assert labelled_cluster(labels, ATTEMPT) == HEAD
    assert labelled_cluster(labels, OTHER) is None, "an earlier attempt went there"
    assert is_unfinished(labels, ATTEMPT)
    assert not is_unfinished(labels, OTHER)
    assert not is_unfinished({**labels, **unfinished_label(ATTEMPT, False)}, ATTEMPT)


def test_a_cluster_that_is_still_to_be_started_has_no_label() -> None:
    labels = owner_labels(ME, ATTEMPT, None, None)
    assert labelled_cluster(labels, ATTEMPT) is None
    assert owner_in(labels, ATTEMPT).host is None


def test_a_run_says_how_long_its_cluster_stays_after_a_failure() -> None:
    labels = owner_labels(ME, ATTEMPT, HEAD, None, 3600)
    assert kept_in(labels, ATTEMPT) == 3600
    assert kept_in(labels, OTHER) is None
    assert kept_in(owner_labels(ME, ATTEMPT, HEAD, None), ATTEMPT) is None
    assert kept_in({KEPT_LABEL: f"{ATTEMPT} long"}, ATTEMPT) is None


def test_a_run_says_which_of_several_places_has_its_cluster() -> None:
    ref = ClusterRef("kuberay", "ray/a", home="0011")
    labels = owner_labels(ME, ATTEMPT, ref, None)
    job_id = job_of_attempt(UUID(int=1), ATTEMPT)
    pid = str(InfrastructurePid(ClusterRef("kuberay", "ray/a@uid"), job_id))
    recorded = recorded_pid(pid, labels, job_id)
    labelled = labelled_cluster(labels, ATTEMPT)
    assert recorded is not None
    assert labelled is not None
    assert recorded.cluster.home == labelled.home == "0011"
    assert recorded.cluster.may_be_at("0011")
    assert not recorded.cluster.may_be_at("2233")
    later = job_of_attempt(UUID(int=1), OTHER)
    recorded = recorded_pid(pid.replace(ATTEMPT, OTHER), labels, later)
    assert recorded is not None
    assert recorded.cluster.may_be_at("2233"), "an earlier attempt's cluster was elsewhere"


@pytest.mark.parametrize("label", ["", ATTEMPT, f"{ATTEMPT} ", f"{ATTEMPT} head", 7])
def test_a_label_that_names_no_cluster_is_none(label: object) -> None:
    assert labelled_cluster({"prefect-ray-worker.cluster": label}, ATTEMPT) is None


def test_a_run_of_an_older_release_counts_as_finished() -> None:
    assert not is_unfinished({OWNER_LABEL: label_of(ME, ATTEMPT)}, ATTEMPT)
