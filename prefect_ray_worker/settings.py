"""Settings of the worker process, read as Prefect's integrations read theirs.

In the environment each name begins with `PREFECT_INTEGRATIONS_RAY_WORKER_`; in `prefect.toml` the
settings stand under `[integrations.ray.worker]`.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field, ValidationError
from pydantic_settings import SettingsError

from prefect_ray_worker.errors import InvalidConfiguration

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_PREFIX = "PREFECT_INTEGRATIONS_RAY_WORKER_"

NodeVariable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]


class RayWorkerSettings(PrefectBaseSettings):
    """Settings of one worker process. Those of a run are its job variables."""

    model_config = build_settings_config(("integrations", "ray", "worker"))

    address: str | None = Field(
        default=None,
        description=(
            "Address of the Ray dashboard for runs that name none, for example "
            "http://ray-head:8265. Unset: the worker starts a local Ray cluster."
        ),
    )
    poll_interval_seconds: float = Field(
        default=5.0,
        gt=0,
        description=(
            "Seconds between two polls of a cluster with more than 10 active jobs. With fewer, the "
            "worker polls every second, or at this interval if it is shorter."
        ),
    )
    unreachable_limit_seconds: float = Field(
        default=3600.0,
        gt=0,
        description=(
            "Seconds for which a cluster can be unreachable before the worker marks its runs "
            "Crashed. Runs that show life in Prefect (a new log line or state) are spared."
        ),
    )
    credentials_folder: Path | None = Field(
        default=None,
        description=(
            "Folder on the worker's machine. A `cluster` that is written into a job variable may "
            "name `token_path` and `ca_file` below it, and no other file. Unset: only a stored "
            "RayCluster block may name such files. A stored block may name any file, so anyone who "
            "can create blocks can have the worker read it: to prevent that, fix `cluster` in the "
            "pool's job_configuration, or give each team a worker of its own. "
            "Example: /etc/prefect-ray-worker/clusters"
        ),
    )
    kuberay_namespaces: list[str] = Field(
        default_factory=list[str],
        description=(
            "The only Kubernetes namespaces in which the worker makes clusters, as JSON. It looks "
            "for unneeded ones in all of them. Unset: any that its rights allow. "
            'Example: ["ray-research", "ray-batch"]'
        ),
    )
    ship_driver: bool = Field(
        default=True,
        description=(
            "Whether the worker ships this package to the cluster with each job. If false, install "
            "the same version on the cluster."
        ),
    )
    node_secrets: dict[str, NodeVariable] = Field(
        default_factory=dict,
        description=(
            "Which environment variables of the Ray nodes hold the secrets that a driver needs, "
            'as JSON. Example: {"PREFECT_API_KEY": "TEAM_PREFECT_KEY"}. Only the names are sent. '
            "Not needed where the nodes define PREFECT_API_KEY itself."
        ),
    )
    send_secrets: bool = Field(
        default=False,
        description=(
            "Whether to send the worker's own PREFECT_API_KEY, PREFECT_API_AUTH_STRING and custom "
            "headers in plain text with each job. Everyone who can list the cluster's jobs can "
            "then read them, even after the job has ended."
        ),
    )


def worker_settings() -> RayWorkerSettings:
    """Return the settings that the environment holds now.

    Raises:
        InvalidConfiguration: A value does not parse, or a variable is misspelt. The message names
            it and shows no value.
    """
    _refuse_misspelt(os.environ)
    try:
        return RayWorkerSettings()
    except ValidationError as exc:
        # `from None`: pydantic's own text shows the values.
        raise InvalidConfiguration("; ".join(map(_in_words, exc.errors()))) from None
    except SettingsError as exc:
        name = next((n for n in RayWorkerSettings.model_fields if f'"{n}"' in str(exc)), "")
        raise InvalidConfiguration(
            f"{_PREFIX}{name.upper()} is not JSON. The reference of settings shows how to write it."
        ) from None


def _refuse_misspelt(environment: Mapping[str, str]) -> None:
    known = {name.upper() for name in RayWorkerSettings.model_fields}
    for variable in sorted(environment):
        before, separator, name = variable.upper().partition("RAY_WORKER_")
        if not separator or not before.startswith("PREFECT_"):
            continue
        ours = f"{before}{separator}" == _PREFIX
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.72)
        if (ours and name in known) or not (ours or close):
            continue
        hint = f"Did you mean {_PREFIX}{close[0]}?" if close else "Remove it."
        raise InvalidConfiguration(
            f"{variable} is not a setting of prefect-ray-worker. {hint} The settings are: "
            f"{', '.join(sorted(known))}, each after {_PREFIX}."
        )


def _in_words(mistake: "ErrorDetails") -> str:
    name, *inside = map(str, mistake["loc"])
    where = f" ({'.'.join(inside)})" if inside else ""
    message = mistake["msg"].removeprefix("Value error, ")
    return f"{_PREFIX}{name.upper()}{where}: {message[:1].lower()}{message[1:]}"
