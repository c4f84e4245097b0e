"""Send the job events that automations match.

An event's id is derived from the job and what happened to it. Every worker computes the same id, so
the Prefect server accepts each event once. For automations, the server forgets ids after 5 minutes
(3.8.8), so a worker that adopts a job first asks which events of the job exist.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from uuid import UUID, uuid5

from prefect.events import Event, RelatedResource, emit_event

from prefect_ray_worker.ray_api.models import JobDetails, JobStatus

PREFIX = "prefect.ray.job"
# A random UUID. Never change it: event ids are derived from it.
_NAMESPACE = UUID("f24b4077-67c0-41de-be28-3c05a2f4703c")

_log = logging.getLogger("prefect.workers.ray.events")


class Happening(Enum):
    """What can happen to a job.

    Attributes:
        meaning: One sentence for the documentation.
        occurred: Which time the event carries, for the documentation.
    """

    PENDING = ("pending", "Ray has the job.", "its submission, by Ray's clock")
    RUNNING = (
        "running",
        "Ray has started the driver.",
        "when the worker first saw it run, because Ray does not record that time",
    )
    SUCCEEDED = ("succeeded", "The driver exited with code 0.", "its end, by Ray's clock")
    FAILED = (
        "failed",
        "The driver exited with another code, never started, or lost its supervisor.",
        "its end, by Ray's clock",
    )
    STOPPED = ("stopped", "The job was stopped.", "its end, by Ray's clock")
    LOST = (
        "lost",
        "The cluster does not have the job any more, or has not answered for longer than "
        "`PREFECT_INTEGRATIONS_RAY_WORKER_UNREACHABLE_LIMIT_SECONDS`.",
        "when the worker gave it up",
    )

    def __init__(self, label: str, meaning: str, occurred: str) -> None:
        self.label = label
        self.meaning = meaning
        self.occurred = occurred

    @property
    def event(self) -> str:
        """The event's name."""
        return f"{PREFIX}.{self.label}"

    @classmethod
    def of(cls, status: JobStatus | str) -> "Happening | None":
        """Return the member for a Ray status, or None if the status is unknown."""
        return next((h for h in cls if h.label == status.lower() and h is not cls.LOST), None)


class Label(Enum):
    """The labels of a job's events, besides Prefect's `prefect.resource.id` and `.name`.

    Attributes:
        meaning: Description for the documentation.
    """

    ADDRESS = ("prefect.ray.address", "Address of the cluster, as the worker knows it.")
    DASHBOARD = ("prefect.ray.dashboard", "The job's page in the Ray dashboard.")
    SESSION = (
        "prefect.ray.session",
        "Ray's session that took the job. It changes when the head restarts.",
    )
    STATUS = ("prefect.ray.status", "Ray's status of the job when it was last seen.")
    NODE = ("prefect.ray.driver-node-id", "Ray's id of the node that has the driver.")
    EXIT_CODE = ("prefect.ray.exit-code", "Of the driver; negative for a signal.")
    ERROR_TYPE = ("prefect.ray.error-type", "Ray's kind of failure.")
    DIAGNOSIS = (
        "prefect.ray.diagnosis",
        "Why the run has no result: a [category](diagnosis.md). Only on an event that ends a job.",
    )

    def __init__(self, label: str, meaning: str) -> None:
        self.label = label
        self.meaning = meaning


@dataclass(frozen=True)
class Subject:
    """The job that the events are about.

    Attributes:
        job_id: The job's submission id.
        name: The job's name.
        labels: Labels that are the same on every event of the job.
        related: Related resources: the flow run, its flow, its deployment, and so on.
    """

    job_id: str
    name: str
    labels: Mapping[Label, str | None]
    related: Sequence[RelatedResource]


def resource_id(job_id: str) -> str:
    """Return a job's resource id for events."""
    return f"{PREFIX}.{job_id}"


def event_id(job_id: str, happening: Happening) -> UUID:
    """Return the id of an event, which is the same for every worker."""
    return uuid5(_NAMESPACE, f"{job_id} {happening.label}")


def occurred_at(happening: Happening, job: JobDetails | None, *, now: datetime) -> datetime:
    """Return when something happened to a job.

    Uses Ray's time if Ray records one, and `now` otherwise.

    Args:
        happening: What happened.
        job: The job as last seen.
        now: The current time.
    """
    match happening:
        case Happening.PENDING:
            milliseconds = job.start_time if job is not None else None
        case Happening.SUCCEEDED | Happening.FAILED | Happening.STOPPED:
            milliseconds = job.end_time if job is not None else None
        case Happening.RUNNING | Happening.LOST:
            milliseconds = None
    return now if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def send(
    happening: Happening,
    subject: Subject,
    job: JobDetails | None,
    *,
    category: str | None = None,
    message: str = "",
    follows: Event | None = None,
) -> Event | None:
    """Queue an event with Prefect's own sender, which delivers it in the background.

    Never raises: a missing event must not fail a run.

    Args:
        happening: What happened.
        subject: The job it happened to.
        job: The job as last seen.
        category: Category of the diagnosis, if any.
        message: Explanation to include in the payload.
        follows: The previous event. Prefect ignores it if it is more than 5 minutes old.

    Returns:
        The event, or None if it could not be queued.
    """
    labels = {**subject.labels, **_labels_of(job), Label.DIAGNOSIS: category}
    try:
        return emit_event(
            event=happening.event,
            resource={
                "prefect.resource.id": resource_id(subject.job_id),
                "prefect.resource.name": subject.name,
                **{key.label: value for key, value in labels.items() if value is not None},
            },
            occurred=occurred_at(happening, job, now=datetime.now(UTC)),
            related=list(subject.related),
            payload={"message": message} if message else None,
            id=event_id(subject.job_id, happening),
            follows=follows,
        )
    except Exception as exc:  # noqa: BLE001 (see above)
        _log.warning("The event %s was not sent: %s", happening.event, exc)
        return None


def _labels_of(job: JobDetails | None) -> dict[Label, str | None]:
    if job is None:
        return {}
    code = job.driver_exit_code
    return {
        Label.STATUS: str(job.status),
        Label.NODE: job.driver_node_id,
        Label.EXIT_CODE: None if code is None else str(code),
        Label.ERROR_TYPE: job.error_type,
    }
