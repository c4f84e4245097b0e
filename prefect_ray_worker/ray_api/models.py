"""Requests and answers of Ray's Jobs API, typed leniently.

Fields and statuses that a newer Ray adds are kept, never refused, so that a worker can watch
a cluster newer than itself. Field names are Ray's own
(`ray/dashboard/modules/job/pydantic_models.py`, Ray 2.60).
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class JobStatus(StrEnum):
    """The status of a Ray Job (`ray/dashboard/modules/job/common.py`, Ray 2.60)."""

    PENDING = "PENDING"
    """Accepted; the supervisor waits for resources or for its runtime environment."""

    RUNNING = "RUNNING"
    """The supervisor has started the entrypoint."""

    STOPPED = "STOPPED"
    """Ended after a request to stop it."""

    SUCCEEDED = "SUCCEEDED"
    """The entrypoint exited with code 0."""

    FAILED = "FAILED"
    """The entrypoint exited with another code, never started, or lost its supervisor."""


TERMINAL_STATUSES = frozenset({JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED})


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class JobDetails(_Answer):
    """One record of `GET /api/jobs/` or `GET /api/jobs/{id}`.

    Attributes:
        status: A `JobStatus`, or the string of a status that this release does not know. An
            unknown status counts as running, never as ended.
        start_time: When the job was *submitted*, not when it started running, in
            milliseconds since the epoch (observed on Ray 2.60).
        end_time: When it ended, in milliseconds since the epoch.
        driver_exit_code: Exit code of the entrypoint; negative for a signal.
        message: Ray's text about the status; for a failed job it ends in log lines.
    """

    submission_id: str | None = None
    job_id: str | None = None
    type: str = "SUBMISSION"
    status: Annotated[JobStatus | str, Field(union_mode="left_to_right")]
    entrypoint: str = ""
    message: str | None = None
    error_type: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    metadata: dict[str, Any] | None = None
    runtime_env: dict[str, Any] | None = None
    driver_agent_http_address: str | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the status is final; Ray never changes a final status again."""
        return self.status in TERMINAL_STATUSES

    @property
    def has_started(self) -> bool:
        """Whether Ray has started the entrypoint."""
        return self.status != JobStatus.PENDING


class ClusterVersion(_Answer):
    """The answer of `GET /api/version`.

    Attributes:
        session_name: Identifies one life of the cluster. It changes when a head without
            fault-tolerant storage restarts. Older releases do not send it.
    """

    ray_version: str
    version: str = ""
    session_name: str | None = None


class ComponentActivity(_Answer):
    """What uses the cluster, by kind: an entry of `GET /api/component_activities`.

    Attributes:
        is_active: `ACTIVE`, `INACTIVE`, or `ERROR` if the cluster cannot tell.
        last_activity_at: When the last use ended, in seconds since the epoch, where it is known.
    """

    is_active: str
    reason: str | None = None
    last_activity_at: float | None = None


class JobSubmitRequest(BaseModel):
    """The body of `POST /api/jobs/`, built once from a configuration and a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entrypoint: str
    submission_id: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None
    entrypoint_resources: dict[str, float] | None = None
    entrypoint_label_selector: dict[str, str] | None = None

    def body(self) -> dict[str, Any]:
        """Return the JSON object without unset fields: older clusters refuse unknown keys."""
        return self.model_dump(mode="json", exclude_none=True)
