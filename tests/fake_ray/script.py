"""Job records of the fake Ray, and the timelines that move them.

Nothing runs in the background: a record works out its status from the clock whenever it
is looked at, so a test can freeze, set and inspect it at any moment.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

TERMINAL = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})

_MESSAGES = {
    "PENDING": "Job has not started yet.",
    "RUNNING": "Job is currently running.",
    "STOPPED": "Job was intentionally stopped.",
    "SUCCEEDED": "Job finished successfully.",
}
_RESOURCE_KEYS = (
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
)


class Timeline:
    """What happens to a job, in seconds since its submission.

    Args:
        steps: `(seconds, status)` pairs in order; the first is usually `(0.0, "PENDING")`.
        message: Ray's message of the last step; by default what Ray itself would say.
        error_type: Of the last step, for FAILED.
        driver_exit_code: Of the last step; by default 0 for SUCCEEDED and 1 for FAILED.
    """

    def __init__(
        self,
        steps: Sequence[tuple[float, str]],
        *,
        message: str | None = None,
        error_type: str | None = None,
        driver_exit_code: int | None = None,
    ) -> None:
        self.steps = tuple(steps)
        self.message = message
        self.error_type = error_type
        self.driver_exit_code = driver_exit_code


OnSubmit = Timeline | Callable[["FakeJob"], Timeline]

SUCCEEDS_SOON = Timeline([(0.0, "PENDING"), (0.05, "RUNNING"), (0.1, "SUCCEEDED")])
RUNS_FOREVER = Timeline([(0.0, "PENDING"), (0.05, "RUNNING")])
PENDING_FOREVER = Timeline([(0.0, "PENDING")])


def like_a_shell(job: "FakeJob") -> Timeline:
    """Behave as a real Ray would for `true`, `exit N`, `sleep N` and impossible resources."""
    if job.body.get("entrypoint_resources"):
        return PENDING_FOREVER
    if match := re.search(r"exit (\d+)", job.entrypoint):
        code = int(match[1])
        end = "SUCCEEDED" if code == 0 else "FAILED"
        return Timeline([*RUNS_FOREVER.steps, (0.1, end)], driver_exit_code=code)
    if match := re.search(r"sleep (\d+)", job.entrypoint):
        return Timeline([*RUNS_FOREVER.steps, (0.05 + int(match[1]), "SUCCEEDED")])
    return SUCCEEDS_SOON


@dataclass
class FakeJob:
    """One record. `status` and `set` are for tests; the rest mirrors Ray's `JobDetails`.

    Attributes:
        body: The submission as it arrived.
        stop_seconds: From a stop request to STOPPED; `math.inf` for a job that will not die.
        stop_requests: How often somebody asked to stop it.
        log: What its driver has printed: bytes, or anything that can be measured and sliced like
            them. None for a log that is not there.
        node_address: Of the agent of its node; by default of the fake itself.
        is_ghost: Whether it is what comes back of a record that was deleted too early.
        submitted_at: When it was submitted, in seconds since the epoch.
    """

    submission_id: str | None
    body: dict[str, Any]
    timeline: Timeline
    stop_seconds: float = 0.05
    type: str = "SUBMISSION"
    job_id: str | None = None
    stop_requests: int = 0
    log: Any = b""
    node_address: str = ""
    is_ghost: bool = False
    submitted_at: float = field(default_factory=time.time)
    _began: float = field(default_factory=time.monotonic)
    _stop_at: float = math.inf

    @property
    def entrypoint(self) -> str:
        return self.body.get("entrypoint", "")

    @property
    def status(self) -> str:
        """The status now, timeline and stop requests considered."""
        return self._now()[0]

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def seconds_since_end(self) -> float:
        """How long ago it ended; negative infinity while it has not."""
        status, since = self._now()
        return self._elapsed() - since if status in TERMINAL else -math.inf

    def set(
        self,
        status: str,
        *,
        message: str | None = None,
        error_type: str | None = None,
        driver_exit_code: int | None = None,
    ) -> None:
        """Move the job to a status now; the rest of its timeline is dropped.

        A job that was asked to stop while PENDING still stops once it is set RUNNING, as in
        Ray. Setting a terminal status is final, whatever was asked before.
        """
        elapsed = self._elapsed()
        if status in TERMINAL:
            self._stop_at = math.inf
        self.timeline = Timeline(
            [(elapsed, status)],
            message=message,
            error_type=error_type,
            driver_exit_code=driver_exit_code,
        )

    def print(self, text: str | bytes) -> None:
        """Let the driver print something."""
        data = text.encode() if isinstance(text, str) else text
        self.log = (self.log or b"") + data

    def request_stop(self) -> bool:
        """Do what `POST /stop` does: true unless there is nothing left to stop."""
        self.stop_requests += 1
        if self.is_terminal:
            return False
        self._stop_at = min(self._stop_at, self._elapsed())
        return True

    def forget_stop(self) -> None:
        """Lose a stop that waits for the start, as a head that restarts does."""
        self._stop_at = math.inf

    def details(self) -> dict[str, Any]:
        """Return the record as `GET /api/jobs/{id}` shows it."""
        status, since = self._now()
        is_last = [step for _, step in self.timeline.steps][-1:] == [status]
        scripted = self.timeline if is_last else Timeline(())
        started = status != "PENDING" and self.type == "SUBMISSION"
        ended = status in TERMINAL
        exit_code, message, error_type = self._outcome(status, scripted)
        driver = {"id": self.job_id, "node_ip_address": "127.0.0.1", "pid": "1"}
        return {
            "type": self.type,
            "job_id": self.job_id,
            "submission_id": self.submission_id,
            "driver_info": driver if self.job_id else None,
            "status": status,
            "entrypoint": self.entrypoint,
            "message": message,
            "error_type": error_type,
            "start_time": int(self.submitted_at * 1000),
            "end_time": int((self.submitted_at + since) * 1000) if ended else None,
            "metadata": self.body.get("metadata"),
            "runtime_env": self.body.get("runtime_env"),
            "driver_agent_http_address": self.node_address if started else None,
            "driver_node_id": "0" * 56 if started else None,
            "driver_exit_code": exit_code,
        }

    def _outcome(
        self, status: str, scripted: Timeline
    ) -> tuple[int | None, str | None, str | None]:
        code, message, error_type = (
            scripted.driver_exit_code,
            scripted.message,
            scripted.error_type,
        )
        if self.type != "SUBMISSION":
            return code, message, error_type
        if status == "SUCCEEDED" and code is None:
            code = 0
        if status == "FAILED" and error_type is None:
            error_type = "JOB_ENTRYPOINT_COMMAND_ERROR"
            code = 1 if code is None else code
            message = message or (
                f"Job entrypoint command failed with exit code {code}, last available logs "
                f"(truncated to 20,000 chars):\nRunning entrypoint for job "
                f"{self.submission_id}: {self.entrypoint}\n"
            )
        return code, message or self._usual_message(status), error_type

    def _usual_message(self, status: str) -> str | None:
        message = _MESSAGES.get(status)
        if status == "PENDING" and any(self.body.get(key) for key in _RESOURCE_KEYS):
            message = (
                f"{message} It may be waiting for resources (CPUs, GPUs, memory, custom "
                "resources) to become available."
            )
        if status == "PENDING" and self.body.get("runtime_env"):
            message = f"{message} It may be waiting for the runtime environment to be set up."
        return message

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _now(self) -> tuple[str, float]:
        """Return the status and the second at which it began."""
        elapsed = self._elapsed()
        for at, status in self.timeline.steps:
            # A stop works on what has started; one asked for earlier waits for the start.
            stopped_at = max(at, self._stop_at) + self.stop_seconds
            if status == "RUNNING" and stopped_at <= elapsed:
                following = [t for t, _ in self.timeline.steps if t > at]
                if self._stop_at < min(following, default=math.inf):
                    return "STOPPED", stopped_at
        reached = [(status, at) for at, status in self.timeline.steps if at <= elapsed]
        return reached[-1] if reached else ("PENDING", 0.0)
