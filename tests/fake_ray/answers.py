"""Ray 2.60's error texts, copied from a live cluster; clients have to read them."""

from typing import Any

MISSING_TOKEN = "Unauthorized: Missing authentication token"
INVALID_TOKEN = "Forbidden: Invalid authentication token"
NO_AGENT = "No available agent to submit job, please try again later."
SERVER_IN_TROUBLE = "500 Internal Server Error\n\nServer got itself in trouble"

_KINDS: dict[str, type | tuple[type, ...]] = {
    "entrypoint": str,
    "submission_id": str,
    "job_id": str,
    "runtime_env": dict,
    "metadata": dict,
    "entrypoint_num_cpus": (int, float),
    "entrypoint_num_gpus": (int, float),
    "entrypoint_memory": int,
    "entrypoint_resources": dict,
    "entrypoint_label_selector": dict,
}


def no_browsers(method: str) -> str:
    return f"'{method}' method not allowed for browser traffic."


def problem_with(body: dict[str, Any]) -> str | None:
    """Return what Ray's `JobSubmitRequest` would raise for this body, if anything."""
    for key in body:
        if key not in _KINDS:
            return (
                f"TypeError: JobSubmitRequest.__init__() got an unexpected keyword argument '{key}'"
            )
    if "entrypoint" not in body:
        return (
            "TypeError: JobSubmitRequest.__init__() missing 1 required positional argument: "
            "'entrypoint'"
        )
    for key, value in body.items():
        if not isinstance(value, _KINDS[key]):
            return f"TypeError: {key} must be a {_KINDS[key]}, got {type(value)}"
    for value in body.get("metadata", {}).values():
        if not isinstance(value, str):
            return f"TypeError: metadata values must be strings, got {type(value)}"
    return None


def bad_request(problem: str) -> str:
    return (
        "Traceback (most recent call last):\n"
        '  File "/ray/dashboard/modules/job/utils.py", line 128, in parse_and_validate_request\n'
        "    return validate_request_type(json_data, request_type)\n"
        "           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        f"{problem}\n"
    )


def already_exists(submission_id: str) -> str:
    return _wrapped_by_the_dashboard(
        400,
        f"ValueError: Job with submission_id {submission_id} already exists. "
        "Please use a different submission_id.",
    )


def bad_label(key: str) -> str:
    return _wrapped_by_the_dashboard(
        400,
        f"ValueError: Invalid label key name `{key}`. Name must be 63 chars or less beginning "
        "and ending with an alphanumeric character ([a-z0-9A-Z]) with dashes (-), underscores "
        "(_),dots (.), and alphanumerics between.",
    )


def not_terminal(submission_id: str, status: str) -> str:
    return _wrapped_by_the_dashboard(
        500,
        f"RuntimeError: Attempted to delete job '{submission_id}', but it is in a non-terminal "
        f"state {status}.",
    )


def _wrapped_by_the_dashboard(status: int, cause: str) -> str:
    # The last line of the real text is a lonely full stop: the dashboard ends its sentence
    # after the agent's whole traceback.
    return (
        "Traceback (most recent call last):\n"
        '  File "/ray/dashboard/modules/job/job_head.py", line 134, in _raise_error\n'
        '    raise RuntimeError(f"Request failed with status code {status}: {error_text}.")\n'
        f"RuntimeError: Request failed with status code {status}: Traceback (most recent call "
        "last):\n"
        '  File "/ray/dashboard/modules/job/job_agent.py", line 45, in submit_job\n'
        "    submission_id = await self.get_job_manager().submit_job(\n"
        f"{cause}\n"
        ".\n"
    )
