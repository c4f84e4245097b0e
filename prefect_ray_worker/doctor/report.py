"""`Check`: the result of one check, and how a report of checks is written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from prefect_ray_worker.shared.plain_text import plain


class _Named(Enum):
    """A value with the label that users see, and its meaning for the documentation."""

    def __init__(self, label: str, meaning: str) -> None:
        self.label = label
        self.meaning = meaning

    def __str__(self) -> str:
        return self.label


class Grade(_Named):
    """The outcome of a check."""

    OK = ("ok", "Nothing to do.")
    WARNING = ("warning", "Runs work, but something could be better or safer.")
    FAILED = ("failed", "Runs fail, or some of them do.")
    SKIPPED = ("skipped", "There is nothing to check here, or an earlier failure prevents it.")


class CheckSubject(_Named):
    """What a check examines, in the order of the report. Scripts rely on the labels."""

    TARGET = (
        "target",
        "Does this cluster or work pool exist, and can a run have its job variables?",
    )
    DASHBOARD = ("dashboard", "Does Ray's dashboard answer?")
    TLS = ("tls", "Is the connection encrypted, and is the certificate trusted?")
    AUTHENTICATION = ("authentication", "Does the cluster ask for credentials, and accept ours?")
    RAY_VERSION = ("ray-version", "Which Ray does the cluster run, and is it new enough?")
    DRIVER_UPLOAD = ("driver-upload", "Does the cluster accept the driver that goes with each job?")
    PROBE_JOB = ("probe-job", "Does a job with the pool's job variables start, and how soon?")
    PYTHON_VERSION = ("python-version", "Which Python does the job have, and is it new enough?")
    RAY_IN_JOB = ("ray-in-job", "Can the job join its cluster, as flows with Ray tasks do?")
    PREFECT_VERSION = ("prefect-version", "Can the job import Prefect, and which version?")
    DRIVER_IMPORT = ("driver-import", "Can the job import the driver, and which version?")
    PREFECT_API = ("prefect-api", "Does the Prefect API answer from inside the cluster?")
    PREFECT_CREDENTIALS = ("prefect-credentials", "Does the API accept the job's credentials?")
    OTHER_NODE = ("other-node", "Does a task run on another node, with the same Prefect?")
    DRIVER_PLACEMENT = ("driver-placement", "Do drivers run on the head or on a worker node?")
    CLOCKS = ("clocks", "Do the clocks of this machine, the nodes and the Prefect server agree?")
    LOGS = ("logs", "Can this machine read the job's log, and from where?")
    CLEAN_UP = ("clean-up", "Was the probe's job removed from Ray's list of jobs?")
    FINISHED_JOBS = ("finished-jobs", "Do records of finished jobs pile up?")


class KubeRaySubject(_Named):
    """What a check examines of a pool whose clusters KubeRay makes, after `target`."""

    KUBERNETES_API = ("kubernetes-api", "Does the Kubernetes API answer, with our credentials?")
    FIELDS = ("kuberay-installed", "Is KubeRay installed, with the fields that a run needs?")
    RIGHTS = ("kubernetes-rights", "Do the worker's Roles allow what a run needs?")
    DRY_RUN = ("cluster-manifest", "Does the API server accept a run's RayCluster (a dry run)?")
    OPERATOR = (
        "kuberay-operator",
        "Does KubeRay's operator act on a suspended RayCluster? It has no pods, and is deleted.",
    )


class SourceSubject(_Named):
    """What a check examines of a pool with `cluster_source`, after `target`."""

    INSTALLED = ("cluster-source", "Is the source installed here, and do its fields fit?")
    OWN = ("cluster-source-check", "What does the source itself examine? One line for each thing.")


Subject = CheckSubject | KubeRaySubject | SourceSubject


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        subject: What was checked.
        grade: The outcome.
        says: What was found, in one sentence.
        advice: What to do, in one sentence; empty if there is nothing to do.
    """

    subject: Subject
    grade: Grade
    says: str
    advice: str = ""

    def __str__(self) -> str:
        # What others answered can end a finding, without a full stop.
        ends = not self.advice or self.says.endswith((".", ":", "?", "!"))
        return f"{self.says}{'' if ends else '.'} {self.advice}".strip()


def ok(subject: Subject, says: str) -> Check:
    """Return a check that found no problem."""
    return Check(subject, Grade.OK, says)


def warning(subject: Subject, says: str, advice: str) -> Check:
    """Return a check that found something to improve."""
    return Check(subject, Grade.WARNING, says, advice)


def failed(subject: Subject, says: object, advice: str = "") -> Check:
    """Return a check that found why runs fail.

    Args:
        subject: What was checked.
        says: A sentence, or an error: the first sentence of its message says what is wrong, and
            the others what to do.
        advice: What to do; for an error, instead of what its message says.
    """
    text = " ".join(str(says).split())
    if isinstance(says, Exception):
        text, rest = _first_sentence(text)
        advice = advice or rest
    return Check(subject, Grade.FAILED, text, advice)


def _first_sentence(text: str) -> tuple[str, str]:
    """Split a message after its first sentence; full stops within brackets end none."""
    depth = 0
    for here, after in zip(range(len(text)), text[1:] + " ", strict=True):
        depth += {"(": 1, ")": -1}.get(text[here], 0)
        ends = text[here] == "." and after == " " and depth <= 0
        if ends and (text[here + 2 : here + 3] or "X") in _BEGINNINGS:
            return text[: here + 1], text[here + 2 :]
    return text, ""


def skipped(subject: Subject, says: str) -> Check:
    """Return a check that had nothing to examine."""
    return Check(subject, Grade.SKIPPED, says)


# What a sentence of ours begins with: a capital letter, or code.
_BEGINNINGS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ`"
_GRADE_WIDTH = max(len(grade.label) for grade in Grade)


def line_of(check: Check) -> str:
    """Return a check as one line: grade, subject, finding and advice."""
    grade = check.grade.label.ljust(_GRADE_WIDTH)
    # What others have sent must not look like a line of ours.
    return f"{grade} {check.subject.label}: {' '.join(plain(str(check)).split())}"


def summary_of(checks: Sequence[Check]) -> str:
    """Return the last line of the report: how many checks had which outcome."""
    counts = {grade.label: sum(check.grade is grade for check in checks) for grade in Grade}
    seen = {check.subject for check in checks}
    expected: set[Subject] = set(CheckSubject)
    for kind in (KubeRaySubject, SourceSubject):
        # A pool whose clusters are made for runs has no cluster to examine yet.
        if any(isinstance(subject, kind) for subject in seen):
            expected = set(kind)
    counts["not reached"] = len(expected - seen)
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def json_of(checks: Sequence[Check]) -> str:
    """Return the report for machines.

    An object with `ok`, the verdict, and `checks`: each with `subject`, `grade` (`ok`, `warning`,
    `failed` or `skipped`), `says` and `advice`.
    """
    document = {
        "ok": is_well(checks),
        "checks": [
            {
                "subject": check.subject.label,
                "grade": check.grade.label,
                "says": check.says,
                "advice": check.advice,
            }
            for check in checks
        ],
    }
    return json.dumps(document, indent=2)


def is_well(checks: Sequence[Check]) -> bool:
    """Return whether no check failed; warnings are not failures."""
    return all(check.grade is not Grade.FAILED for check in checks)
