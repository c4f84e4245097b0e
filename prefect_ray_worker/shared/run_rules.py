"""Rules about flow runs that the worker and the driver both follow. Pure, standard library only."""

import json

from prefect_ray_worker.shared.backoff import Backoff

_NOT_FOUND, _TOO_SLOW, _TOO_OFTEN, _SERVER_ERROR, _AWAY = 404, 408, 429, 500, 503

RETRY_TYPE_OF_WORKERS = "reschedule"
"""The `retry_type` of a run that a worker may be given again."""


def waits_in_process(state_type: str, retry_type: "str | None") -> bool:
    """Return whether a run waits inside its process for its next try.

    Prefect calls such a run Scheduled, but gives it to no worker (3.8.8): without its process it
    would wait for ever. Each side has to count it as Running, and has to set
    `RETRY_TYPE_OF_WORKERS` before it schedules the run for a worker.

    Args:
        state_type: The type that Prefect gives its state.
        retry_type: Of the run's empirical policy.
    """
    return state_type == "SCHEDULED" and retry_type == "in_process"


def pauses_in_process(state_type: str, pause_reschedule: "bool | None") -> bool:
    """Return whether a run is paused inside its process, which waits for it to be resumed.

    A run that is suspended is Paused as well, but its process ends, and another one resumes it.

    Args:
        state_type: The type that Prefect gives its state.
        pause_reschedule: Of the state's details: set for a run that is suspended (3.8.8).
    """
    return state_type == "PAUSED" and not pause_reschedule


def is_passing(status_code: int) -> bool:
    """Return whether an HTTP error of the Prefect API goes away by waiting.

    Every other 4xx is about the request.

    Args:
        status_code: Of the answer.
    """
    return status_code >= _SERVER_ERROR or status_code in (_TOO_SLOW, _TOO_OFTEN)


def is_own_not_found(body: bytes) -> bool:
    """Return whether the body of a 404 is Prefect's: what was asked for does not exist.

    Prefect answers with a `detail` or an `exception_message` (3.8.8). The 404 of a proxy says
    nothing about it, nor does `Not Found`, which is FastAPI's for a path that nothing serves.

    Args:
        body: Of the answer.
    """
    try:
        answer = json.loads(body)
        says = answer.get("detail") or answer.get("exception_message")
    except (ValueError, AttributeError, RecursionError):
        return False
    return isinstance(says, str) and says != "Not Found"


def is_not_taken(status_code: int, body: bytes) -> bool:
    """Return whether an HTTP error says that a request changed nothing and may be sent again.

    Args:
        status_code: Of the answer.
        body: Of the answer.
    """
    if status_code == _NOT_FOUND:
        return not is_own_not_found(body)
    return status_code in (_TOO_SLOW, _TOO_OFTEN, _AWAY)


class Patience:
    """Decides how long to go on asking an API that does not answer.

    Args:
        seconds: How long to ask at most.
        now: The present, in seconds of any monotonic clock.
        first: Seconds to wait after the first failure; the wait grows from there.
    """

    def __init__(self, seconds: float, *, now: float, first: float = 1.0) -> None:
        self._deadline = now + seconds
        self._backoff = Backoff(first)

    def wait(self, now: float, *, at_least: float = 0.0) -> "float | None":
        """Return how many seconds to wait before asking again, or None to give up.

        Args:
            now: The present, on the same clock.
            at_least: What the other side has asked for (`Retry-After`), in seconds.
        """
        left = self._deadline - now
        return min(max(self._backoff.next(), at_least), left) if left > 0 else None
