"""What one look at a cluster can tell about one job. Three answers, and no fourth."""

from dataclasses import dataclass

from prefect_ray_worker.ray_api.models import JobDetails


@dataclass(frozen=True)
class Seen:
    """The cluster showed the job.

    Attributes:
        details: The job as it was.
    """

    details: JobDetails


@dataclass(frozen=True)
class Missing:
    """The cluster answered, and does not have the job.

    Attributes:
        session_name: The cluster's present life, if it says so.
    """

    session_name: str | None


@dataclass(frozen=True)
class Unreachable:
    """Nothing is known: a statement about our view, never about the job.

    Attributes:
        reason: Why, in words for the user.
    """

    reason: str


Observation = Seen | Missing | Unreachable
