"""What an error of the Prefect API means: pure, and in one place."""

from typing import cast

import httpx
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker.shared.run_rules import is_passing


def is_gone(exc: ObjectNotFound) -> bool:
    """Return whether Prefect itself says that something does not exist.

    Its client raises `ObjectNotFound` for any 404 (3.8.8): the page of an ingress whose server is
    being rolled out says nothing about a run, and a live job must not be stopped for it.
    """
    answer = getattr(exc.http_exc, "response", None)
    return answer is None or _is_prefects(answer)


def _is_prefects(answer: httpx.Response) -> bool:
    try:
        body = answer.json()
    except (ValueError, RecursionError, httpx.ResponseNotRead):
        return False
    if not isinstance(body, dict):
        return False
    said = cast("dict[str, object]", body)
    text = said.get("detail") or said.get("exception_message")
    # FastAPI's own "Not Found" means that there is no such path: another program answers.
    return isinstance(text, str) and text != "Not Found"


def is_passing_error(exc: Exception) -> bool:
    """Return whether the Prefect API may answer otherwise when it is asked again."""
    if isinstance(exc, ObjectNotFound):
        return not is_gone(exc)
    if isinstance(exc, httpx.HTTPStatusError):
        found_nothing = exc.response.status_code == int(httpx.codes.NOT_FOUND)
        foreign = found_nothing and not _is_prefects(exc.response)
        return foreign or is_passing(exc.response.status_code)
    return isinstance(exc, httpx.TransportError)
