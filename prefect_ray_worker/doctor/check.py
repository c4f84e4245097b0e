"""`Check`: one thing that was looked at, and what to do about it."""

from dataclasses import dataclass
from enum import Enum


class _Named(Enum):
    """A value, and what it means: for the documentation."""

    def __init__(self, label: str, meaning: str) -> None:
        self.label = label
        self.meaning = meaning

    def __str__(self) -> str:
        return self.label


class Grade(_Named):
    """How a check has come out."""

    OK = ("ok", "Nothing stands in the way.")
    WARNING = ("warning", "Runs work, and something about them could be better or safer.")
    FAILED = ("failed", "Runs fail, or some of them.")
    SKIPPED = ("skipped", "There is nothing to look at here, or something keeps us from it.")


class Subject(_Named):
    """What is looked at, in the order of the report; the labels are promises to scripts."""

    TARGET = ("target", "Is there such a cluster or work pool?")
    DASHBOARD = ("dashboard", "Does Ray's dashboard answer?")
    TLS = ("tls", "Is the way to it encrypted, and by whom?")
    AUTHENTICATION = ("authentication", "Are our credentials accepted, and are any asked for?")
    RAY_VERSION = ("ray-version", "Which Ray does the cluster have, and is it new enough?")
    DRIVER_UPLOAD = ("driver-upload", "Does the cluster take the driver that goes with each job?")
    PROBE_JOB = ("probe-job", "Does a job start, with the job variables of the pool, and how soon?")
    PYTHON_VERSION = ("python-version", "Which Python does the job have, and is it new enough?")
    RAY_IN_JOB = ("ray-in-job", "Can the job join its cluster, as for Ray tasks?")
    PREFECT_VERSION = ("prefect-version", "Can the job import Prefect, and which?")
    DRIVER_IMPORT = ("driver-import", "Can the job import the driver, and which?")
    PREFECT_API = ("prefect-api", "Does the Prefect API answer from inside the cluster?")
    PREFECT_CREDENTIALS = ("prefect-credentials", "Does it accept the credentials that jobs have?")
    OTHER_NODE = ("other-node", "Does a task run on another node, with the same Prefect?")
    DRIVER_PLACEMENT = ("driver-placement", "Do drivers run on the head, or beside it?")
    CLOCKS = ("clocks", "Do this machine, the head, the node and the Prefect server agree?")
    LOGS = ("logs", "Can the job's log be read, and by which way?")
    CLEAN_UP = ("clean-up", "Is the probe gone without a trace in Ray's list of jobs?")
    FINISHED_JOBS = ("finished-jobs", "Do records of finished jobs pile up?")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        subject: What.
        grade: How it came out.
        says: What was found, in one sentence.
        advice: What to do, in one sentence; empty where there is nothing to do.
    """

    subject: Subject
    grade: Grade
    says: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.says} {self.advice}".strip()


def ok(subject: Subject, says: str) -> Check:
    """Return a check that found nothing in the way."""
    return Check(subject, Grade.OK, says)


def warning(subject: Subject, says: str, advice: str) -> Check:
    """Return a check that found something to improve."""
    return Check(subject, Grade.WARNING, says, advice)


def failed(subject: Subject, says: object, advice: str = "") -> Check:
    """Return a check that found why runs fail.

    Args:
        subject: What was looked at.
        says: A sentence, or an error of this package, whose message says what to do as well.
        advice: What to do.
    """
    return Check(subject, Grade.FAILED, " ".join(str(says).split()), advice)


def skipped(subject: Subject, says: str) -> Check:
    """Return a check that had nothing to look at."""
    return Check(subject, Grade.SKIPPED, says)
