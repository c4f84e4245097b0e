"""Finds a work pool for a command, and says in one sentence why it cannot."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
)
from pydantic import SecretStr, ValidationError

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.secrets import without_userinfo
from prefect_ray_worker.config.variables import RayWorkerVariables
from prefect_ray_worker.diagnosis.text import clean
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api.answers import is_gone, why_unsendable

_POOL_TYPE = "ray"


@asynccontextmanager
async def open_prefect(wanted: str, otherwise: str = "") -> AsyncGenerator[PrefectClient, None]:
    """Open a client; an error, also a later one, says in one sentence why Prefect cannot be asked.

    Args:
        wanted: What is looked up, for the message: `work pool 'research'`.
        otherwise: What the user can do without Prefect: `name only the address of the cluster`.

    Raises:
        InvalidConfiguration: There is no Prefect, it does not answer, or it lacks what it is asked.
    """
    api = PREFECT_API_URL.value()
    or_else = f", or {otherwise}" if otherwise else ""
    if not api:
        raise InvalidConfiguration(
            f"PREFECT_API_URL is not set, so {wanted} cannot be looked up. Set it to the API that "
            f"the workers use{or_else}."
        )
    _refuse_white_space()
    try:
        async with _client() as client:
            yield client
    # Prefect's client raises a RuntimeError when it is opened and nothing answers (3.8.8).
    except (PrefectHTTPStatusError, httpx.HTTPError, httpx.InvalidURL, RuntimeError) as exc:
        raise _no_answer(wanted, exc, or_else) from exc
    except ObjectNotFound as exc:
        if not is_gone(exc):
            raise _no_answer(wanted, exc.http_exc, or_else) from exc
        says = (exc.help_message or next(iter(clean(str(exc.http_exc))), "")).rstrip(".")
        raise InvalidConfiguration(
            f"Prefect does not have all that {wanted} needs ({says}). Correct what refers to it."
        ) from exc
    # `from None`: pydantic's own text shows what was answered.
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError):
        raise InvalidConfiguration(
            f"What answers at {without_userinfo(api)} is not a Prefect API, so {wanted} cannot be "
            f"read. Check PREFECT_API_URL, and whether a proxy wants a login{or_else}."
        ) from None


def _refuse_white_space() -> None:
    # Prefect 3.8.8 puts the key into a header as it is, and tries for a minute to send that.
    # PREFECT_API_AUTH_STRING is encoded, and is right if the server's has the same white space.
    value = PREFECT_API_KEY.value()
    key = value.get_secret_value() if isinstance(value, SecretStr) else value or ""
    if key != key.strip():
        raise InvalidConfiguration(
            "PREFECT_API_KEY begins or ends with white space, often the line feed of the file "
            "that it comes from. Create the Secret with "
            '--from-literal=api-key="$(cat api-key.txt)", or set the variable without it.'
        )


def _client() -> PrefectClient:
    try:
        return get_client()
    except OSError as exc:  # includes ssl.SSLError
        file = PREFECT_API_SSL_CERT_FILE.value()
        raise InvalidConfiguration(
            f"PREFECT_API_SSL_CERT_FILE {file!r} cannot be used ({exc}). Name a PEM file on this "
            "machine."
        ) from exc


def _no_answer(wanted: str, exc: Exception, or_else: str) -> InvalidConfiguration:
    cause = exc.__cause__ or exc
    if (setting := why_unsendable(exc) or why_unsendable(cause)) is not None:
        return InvalidConfiguration(f"Cannot read {wanted}: {setting}. Correct it{or_else}.")
    api = without_userinfo(PREFECT_API_URL.value() or "")
    reason = next(iter(clean(str(cause))), type(cause).__name__)  # without credentials
    return InvalidConfiguration(
        f"Cannot read {wanted} from the Prefect API at {api} ({reason}). "
        f"Check that the server runs, PREFECT_API_URL and the credentials{or_else}."
    )


async def read_ray_pool(name: str, client: PrefectClient) -> WorkPool:
    """Return a work pool of our type.

    Raises:
        InvalidConfiguration: There is none of this name.
    """
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound as exc:
        if not is_gone(exc):
            raise exc.http_exc from None
        api = without_userinfo(PREFECT_API_URL.value() or "")
        raise InvalidConfiguration(
            f"The Prefect API at {api} has no work pool {name!r}. `prefect work-pool ls` lists "
            "those that it has."
        ) from None
    if pool.type != _POOL_TYPE:
        raise InvalidConfiguration(
            f"Work pool {name!r} is of type {pool.type!r}; only pools of type "
            f"{_POOL_TYPE!r} run on Ray."
        )
    return pool


def default_template() -> dict[str, Any]:
    """Return the template of a new work pool, as `RayWorker` offers it."""
    variables = RayWorkerVariables.model_json_schema()
    return {"job_configuration": RayJobConfiguration.json_template(), "variables": variables}
