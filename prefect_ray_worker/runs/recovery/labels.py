"""Write and read the labels by which workers tell each other about a run. Pure.

Labels of a flow run stay from one attempt to the next, so each of them names its attempt. They are
for programs; no page of the UI shows them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from prefect_ray_worker.shared.ids import (
    UNFINISHED_LABEL,
    ClusterRef,
    InfrastructurePid,
    attempt_in,
)

OWNER_LABEL = "prefect-ray-worker.owner"
"""Label of a flow run: `<attempt> <process> <host or -> <worker name>`.

It names the present attempt. Its owner has a label of the attempt's own as well,
`prefect-ray-worker.owner.<attempt>`, which counts: an earlier attempt may have another owner, who
forwards the rest of its log.
"""

UPLOADING_LABEL = "prefect-ray-worker.uploading"
"""Label of a flow run: `<attempt>`. The process that calls it uploads its code."""

CLUSTER_LABEL = "prefect-ray-worker.cluster"
"""Label of a flow run: `<attempt> <cluster>`. The cluster that gets the attempt's job."""

HOME_LABEL = "prefect-ray-worker.cluster-home"
"""Label of a flow run: `<attempt> <home>`. Which Kubernetes has that cluster, for example."""

KEPT_LABEL = "prefect-ray-worker.keep-failed"
"""Label of a flow run: `<attempt> <seconds>`. So long its own cluster stays after a failure."""

# Set by Prefect's own worker after its claim, before our label (3.8.8).
_SUBMITTER_LABEL = "prefect.worker.name"
_NONE = "-"


@dataclass(frozen=True)
class Worker:
    """One process of a worker. A worker that is started again keeps its name, not its instance.

    Attributes:
        name: As Prefect knows it.
        instance: Random; differs for each process. Without white space.
        host: Its machine.
    """

    name: str
    instance: str
    host: str = ""


@dataclass(frozen=True)
class Owner:
    """Which worker owns an attempt at a run, as far as the labels tell.

    Attributes:
        name: The worker's name; None if no worker has said so yet.
        instance: Its process; None if only Prefect's own label tells, or it gave the run up.
        host: The machine whose own Ray has the job; None for a cluster that others can reach.
        gave_up: Whether it gave the attempt up, as a worker does that is stopped.
    """

    name: str | None
    instance: str | None = None
    host: str | None = None
    gave_up: bool = False


NOBODY = Owner(None)


def label_of(worker: Worker, attempt: str, host: str | None = None) -> str:
    """Return the value of the labels by which a worker claims an attempt at a run.

    Args:
        worker: The worker.
        attempt: The attempt.
        host: The machine whose own Ray has the job, if no other machine can ask that Ray.
    """
    return f"{attempt} {worker.instance} {host or _NONE} {worker.name}"


def claimed_by(worker: Worker, attempt: str, host: str | None = None) -> dict[str, str]:
    """Return the labels by which a worker claims the present attempt at a run."""
    value = label_of(worker, attempt, host)
    return {OWNER_LABEL: value, _owner_label_of(attempt): value}


def given_up_by(worker: Worker, attempt: str, host: str | None = None) -> dict[str, str]:
    """Return the label by which a worker gives up an attempt at a run.

    `OWNER_LABEL` stays: the run may have gone on to another attempt.
    """
    return {_owner_label_of(attempt): label_of(Worker(worker.name, _NONE), attempt, host)}


def owner_labels(
    worker: Worker,
    attempt: str,
    cluster: ClusterRef | None,
    host: str | None,
    kept: float | None = None,
) -> dict[str, str]:
    """Return the labels that a worker writes on a run before it submits an attempt at it.

    Args:
        worker: The worker.
        attempt: The attempt.
        cluster: Where the job is to go; None if that cluster has to be started first.
        host: The machine whose own Ray gets the job, if no other machine can ask that Ray.
        kept: Seconds for which the cluster stays after a failure, if no one else records them.
    """
    labels = {**claimed_by(worker, attempt, host), **unfinished_label(attempt, True)}
    if cluster is not None:
        labels[CLUSTER_LABEL] = f"{attempt} {cluster}"
        if cluster.home is not None:
            labels[HOME_LABEL] = f"{attempt} {cluster.home}"
    if kept is not None:
        labels[KEPT_LABEL] = f"{attempt} {kept}"
    return labels


def unfinished_label(attempt: str, unfinished: bool) -> dict[str, str]:
    """Return the label that says whether something of an attempt is left to do."""
    return {f"{UNFINISHED_LABEL}.{attempt}": "yes" if unfinished else "no"}


def is_unfinished(labels: Mapping[str, object], attempt: str) -> bool:
    """Return whether something of an attempt is left to do, also after the end of its run.

    A run of an older release has no such label, and counts as finished.
    """
    return labels.get(f"{UNFINISHED_LABEL}.{attempt}") == "yes"


def labelled_cluster(labels: Mapping[str, object], attempt: str) -> ClusterRef | None:
    """Return the cluster that an attempt at a run was to be submitted to, if a label says so."""
    try:
        cluster = ClusterRef.parse(_of_attempt(labels, CLUSTER_LABEL, attempt))
        return replace(cluster, home=_home_in(labels, attempt))
    except ValueError:
        return None


def recorded_pid(
    text: str | None, labels: Mapping[str, object], submission_id: str
) -> InfrastructurePid | None:
    """Return what a run's `infrastructure_pid` says of a job; None if it names another.

    The labels add what the text does not say: the home of the job's cluster.
    """
    pid = InfrastructurePid.of_job(text, submission_id)
    if pid is None:
        return None
    home = _home_in(labels, attempt_in(submission_id))
    return replace(pid, cluster=replace(pid.cluster, home=home))


def kept_in(labels: Mapping[str, object], attempt: str) -> float | None:
    """Return how many seconds the cluster of a failed attempt stays; None if no label says so."""
    try:
        return float(_of_attempt(labels, KEPT_LABEL, attempt))
    except ValueError:
        return None


def labelled_owner(labels: Mapping[str, object]) -> tuple[str, Owner] | None:
    """Return the attempt that `OWNER_LABEL` names, and the owner of that attempt.

    Labels stay from one attempt to the next, so the attempt may be an earlier one.
    """
    named = _parsed(labels.get(OWNER_LABEL))
    if named is None:
        return None
    attempt, owner = named
    return attempt, labelled_owner_of(labels, attempt) or owner


def labelled_owner_of(labels: Mapping[str, object], attempt: str) -> Owner | None:
    """Return the owner of an attempt at a run; None if no label of ours names one.

    A run of an earlier release has `OWNER_LABEL` only.
    """
    for label in (_owner_label_of(attempt), OWNER_LABEL):
        named = _parsed(labels.get(label))
        if named is not None and named[0] == attempt:
            return named[1]
    return None


def submitter_in(labels: Mapping[str, object]) -> str | None:
    """Return the worker that Prefect's own label names."""
    submitter = labels.get(_SUBMITTER_LABEL)
    return str(submitter) if submitter else None


def owner_in(labels: Mapping[str, object], attempt: str) -> Owner:
    """Return the owner of an attempt at a run, as the labels of the run tell."""
    labelled = labelled_owner_of(labels, attempt)
    if labelled is not None:
        return labelled
    submitter = submitter_in(labels)
    return Owner(submitter) if submitter else NOBODY


def _home_in(labels: Mapping[str, object], attempt: str) -> str | None:
    return _of_attempt(labels, HOME_LABEL, attempt) or None


def _of_attempt(labels: Mapping[str, object], label: str, attempt: str) -> str:
    """Return what follows the attempt in a label; nothing if the label is another attempt's."""
    labelled, _, said = str(labels.get(label, "")).partition(" ")
    return said if labelled == attempt else ""


def _owner_label_of(attempt: str) -> str:
    return f"{OWNER_LABEL}.{attempt}"


def _parsed(label: object) -> tuple[str, Owner] | None:
    """Return the attempt and the owner that a label names; None if it is none of ours."""
    parts = str(label or "").split(" ", maxsplit=3)
    if len(parts) != 4:
        return None
    attempt, instance, host, name = parts
    return attempt, Owner(
        name or None,
        _none_if_empty(instance),
        _none_if_empty(host),
        gave_up=instance == _NONE,
    )


def _none_if_empty(part: str) -> str | None:
    return None if part == _NONE else part
