"""Settings of the worker process, read as Prefect's integrations read theirs.

In the environment each name begins with `PREFECT_INTEGRATIONS_RAY_WORKER_`; in `prefect.toml` the
settings stand under `[integrations.ray.worker]`.
"""

from pathlib import Path
from typing import Annotated

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field

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
            "RayCluster block may name such files. Example: /etc/prefect-ray-worker/clusters"
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
            "headers in clear with each job. Everyone who can list the cluster's jobs can then "
            "read them, even after the job has ended."
        ),
    )


def worker_settings() -> RayWorkerSettings:
    """Return the settings that the environment holds now.

    Raises:
        pydantic.ValidationError: A value does not parse; the message names the setting.
    """
    return RayWorkerSettings()
