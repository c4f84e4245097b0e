"""Names, and nothing but: which run, which attempt, which job, on which cluster.

Pure, so that two workers, or one worker asked twice, come to the same names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import urldefrag
from uuid import UUID

DELETE_AFTER_KEY = "prefect-ray-worker/delete-job-after-seconds"
"""Metadata of a job: how long after its end its record is to stay."""

INFRASTRUCTURE_RETRY = "AwaitingInfrastructureRetry"
"""Name of the Scheduled state in which a run waits for another attempt."""

STARTING = "Starting"
"""Name of the Pending state that a driver puts its run into: the server grants it only once."""

AWAITING_CODE = "AwaitingCode"
"""Name of the Scheduled state of a run whose caller is still sending its code."""

LOG_END_LABEL = "prefect-ray-worker.log-end"
"""Label of a flow run: `<attempt>`, once all that its flow has printed is in Prefect.

Written only for runs without a deployment: their callers wait for it.
"""

UNFINISHED_LABEL = "prefect-ray-worker.unfinished"
"""Begins the label of a flow run, followed by a dot and the attempt: `yes` or `no`.

`yes` as long as the log of the attempt's job is not in Prefect to its end, also after the run.
"""

OVERDUE_LABEL = "prefect-ray-worker.overdue"
"""Begins the label of a flow run, followed by a dot and the attempt: `yes`.

A worker writes it before it stops a job at one of its limits.
"""

BUNDLE_FOLDER_VARIABLE = "PREFECT_RAY_WORKER_BUNDLE_FOLDER"
"""Names the folder with the files of a flow without a deployment; its tasks get that folder."""

POOL_KEY = "prefect.io/work-pool-id"
"""The label that Prefect puts on the job of a run, with its work pool's id (3.8.8)."""

_ADDRESS = "address"
_OUR_ID = re.compile(r"prefect-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-[0-9a-f]{12}")
_OUR_CLUSTER = re.compile(r"ray-([0-9a-f]{32})-([0-9a-f]{12})")
_PATH = "/api/jobs/"
_RUN_KEY = "prefect.io/flow-run-id"
_LATE = "Late"


@dataclass(frozen=True)
class ClusterRef:
    """Identifies a cluster, for every process alike: compare these, never addresses.

    Written as the address itself (`http://head:8265`), or as `<kind>:<name>`. The name of a cluster
    that is made and deleted ends in `@<uid>`, once it exists: a later one can have the same name.

    Attributes:
        kind: `address`, or the kind of name that follows.
        name: The address of the dashboard, or the cluster's name among those of its kind.
        home: Which of several places of that kind has it, for example which Kubernetes; None if
            that is not known. Not part of the text, and not compared: a uid says more.
    """

    kind: str
    name: str
    home: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.name if self.kind == _ADDRESS else f"{self.kind}:{self.name}"

    @property
    def planned(self) -> "ClusterRef":
        """The reference that was known before the cluster existed: without the uid."""
        if self.kind == _ADDRESS:
            return self
        return ClusterRef(self.kind, self.name.partition("@")[0], self.home)

    def may_be(self, other: "ClusterRef") -> bool:
        """Return whether both can be to one cluster: one of them may lack the uid."""
        uids = {self.uid, other.uid} - {None}
        return self.planned == other.planned and len(uids) <= 1

    def may_be_at(self, home: str | None) -> bool:
        """Return whether the cluster can be at a place: also if either is not known."""
        return None in (self.home, home) or self.home == home

    @property
    def uid(self) -> str | None:
        """Identifies the one cluster of this name that is meant; None if it is not known yet."""
        return None if self.kind == _ADDRESS else self.name.partition("@")[2] or None

    @classmethod
    def of_address(cls, address: str) -> "ClusterRef":
        """Return the reference to the cluster at the (normalized) address of a dashboard."""
        return cls(_ADDRESS, address)

    @classmethod
    def parse(cls, text: str) -> "ClusterRef":
        """Read back what `str()` wrote.

        Raises:
            ValueError: The text refers to no cluster.
        """
        kind, colon, name = text.partition(":")
        if kind in ("http", "https") and name.startswith("//"):
            return cls.of_address(text)
        if not colon or not name or not kind.isidentifier() or kind == _ADDRESS:
            raise ValueError(f"{text!r} does not refer to a Ray cluster")
        return cls(kind, name)


@dataclass(frozen=True)
class InfrastructurePid:
    """What Prefect keeps as a flow run's `infrastructure_pid`: the job, and its cluster.

    `http://head:8265/api/jobs/prefect-<flow run>-<attempt>#<session name>`: for a cluster by
    address this is the job's own URL.

    Attributes:
        cluster: The cluster that took the job.
        submission_id: The job's id there.
        session_name: The cluster's session that took it, where the cluster says so.
    """

    cluster: ClusterRef
    submission_id: str
    session_name: str | None = None

    def __str__(self) -> str:
        session = f"#{self.session_name}" if self.session_name else ""
        return f"{self.cluster}{_PATH}{self.submission_id}{session}"

    @classmethod
    def parse(cls, text: str) -> "InfrastructurePid":
        """Read back what `str()` wrote.

        Raises:
            ValueError: The text is not the pid of a Ray Job.
        """
        url, session = urldefrag(text)
        written, _, submission_id = url.rpartition(_PATH)
        try:
            cluster = ClusterRef.parse(written)
        except ValueError:
            cluster = None
        if cluster is None or not submission_id or "/" in submission_id:
            raise ValueError(f"{text!r} is not the infrastructure pid of a Ray Job")
        return cls(cluster, submission_id, session or None)

    @classmethod
    def of_job(cls, text: str | None, submission_id: str) -> "InfrastructurePid | None":
        """Return what a run's `infrastructure_pid` says of a job; None if it names another."""
        try:
            pid = cls.parse(text or "")
        except ValueError:
            return None
        return pid if pid.submission_id == submission_id else None


class StateOfRun(Protocol):
    """What is asked of a flow-run state here; Prefect's `State` is one."""

    id: UUID
    type: Any
    name: str | None
    timestamp: datetime


def present_claim(history: Iterable[StateOfRun]) -> UUID | None:
    """Return the id of the Pending state that began the present attempt at a run.

    The server grants a run's transition to Pending to exactly one worker, and keeps it in the
    run's history, where every other worker, and the driver, find it as well. `Submitting` and
    the like are of type PENDING too, but come later.

    Args:
        history: The run's states, in any order.

    Returns:
        None for an empty history.
    """
    claims = _claims(history)
    return claims[-1] if claims else None


def attempt_number(history: Iterable[StateOfRun], claim_id: UUID) -> int:
    """Return which attempt at a run a claim began, counted from 1.

    Args:
        history: The run's states, in any order; later ones may be missing.
        claim_id: The Pending state that began the attempt.
    """
    claims = _claims(history)
    return claims.index(claim_id) + 1 if claim_id in claims else max(len(claims), 1)


def was_never_sent(history: Iterable[StateOfRun]) -> bool:
    """Return whether the process that called a run's flow ended before it had sent the code.

    Args:
        history: The run's states, in any order.
    """
    states = sorted(history, key=lambda state: state.timestamp)
    # Prefect's own states of a run that waits, such as Late, say nothing about its caller.
    named = [state.name for state in states if state.type == "SCHEDULED"]
    return AWAITING_CODE in named and set(named) <= {AWAITING_CODE, _LATE}


def is_claim(state: StateOfRun) -> bool:
    """Return whether a state began an attempt at its run."""
    return state.type == "PENDING" and state.name == "Pending"


def _claims(history: Iterable[StateOfRun]) -> list[UUID]:
    """Return the ids of the states that began the attempts at a run, in order."""
    states = sorted(history, key=lambda state: state.timestamp)
    claims = [s.id for s in states if is_claim(s)]
    return claims or [s.id for s in states]


def attempt_name(claim_id: UUID) -> str:
    """Return the short name of an attempt: 12 hex digits of its claim."""
    # The tail of a UUID is random in versions 4 and 7; the head of a version 7 is a clock.
    return claim_id.hex[-12:]


def submission_id(flow_run_id: UUID, claim_id: UUID) -> str:
    """Return the Ray submission id of one attempt at a flow run.

    An attempt is named by the claim that started it: the Pending state that the Prefect
    server granted to exactly one worker. So a second worker cannot submit the attempt under
    another name, and a retry, having a claim of its own, never meets a finished job.

    Args:
        flow_run_id: The flow run.
        claim_id: Id of the Pending state that began the attempt.

    Returns:
        `prefect-<flow run id>-<12 hex digits>`; Ray wants no slash and no bare 8 hex digits.
    """
    return job_of_attempt(flow_run_id, attempt_name(claim_id))


def job_of_attempt(flow_run_id: UUID, attempt: str) -> str:
    """Return the Ray submission id of an attempt that is known by its name."""
    return f"prefect-{flow_run_id}-{attempt}"


def run_in(submission_id: str) -> UUID | None:
    """Return the flow run that a submission id was made for; None for an id of anything else."""
    match = _OUR_ID.fullmatch(submission_id)
    return UUID(match[1]) if match else None


def own_cluster_name(submission_id: str) -> str:
    """Return the name of the cluster of an attempt that gets its own: 49 characters.

    Args:
        submission_id: Of the attempt's job.

    Raises:
        ValueError: It is not the id of a flow run's job.
    """
    run_id = run_in(submission_id)
    if run_id is None:
        raise ValueError(f"{submission_id!r} is not the job of a flow run.")
    return f"ray-{run_id.hex}-{attempt_in(submission_id)}"


def run_of_cluster_name(name: str) -> tuple[UUID, str] | None:
    """Return the flow run, and the attempt, that a cluster's name was made for."""
    match = _OUR_CLUSTER.fullmatch(name)
    return (UUID(match[1]), match[2]) if match else None


def attempt_in(submission_id: str) -> str:
    """Return the name of the attempt that a submission id was made for."""
    return submission_id.rpartition("-")[2]


def overdue_label(attempt: str) -> str:
    """Return the label that says that an attempt is stopped at one of its limits."""
    return f"{OVERDUE_LABEL}.{attempt}"


def is_job_of(flow_run_id: UUID, metadata: Mapping[str, object] | None) -> bool:
    """Say whether a job's metadata names this flow run, so that it may be adopted."""
    return metadata is not None and metadata.get(_RUN_KEY) == str(flow_run_id)


def run_of_job(work_pool_id: UUID, metadata: Mapping[str, object] | None) -> UUID | None:
    """Return the flow run that a job of a work pool was submitted for.

    Returns:
        None for a job of anything else: another pool, another Prefect server, another tool.
    """
    if metadata is None or metadata.get(POOL_KEY) != str(work_pool_id):
        return None
    try:
        return UUID(str(metadata.get(_RUN_KEY)))
    except ValueError:
        return None
