"""Knobs of the worker process, read from the environment the way Prefect's integrations do.

Every name below is prefixed with `PREFECT_INTEGRATIONS_RAY_WORKER_`, and may also stand in
`prefect.toml` under `[integrations.ray.worker]`.
"""

from typing import Annotated

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field

NodeVariable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]


class RayWorkerSettings(PrefectBaseSettings):
    """Settings of one worker process, as opposed to those of a run (the job variables)."""

    model_config = build_settings_config(("integrations", "ray", "worker"))

    address: str | None = Field(
        default=None,
        description=(
            "Address of the Ray dashboard for runs that name none, for example "
            "http://ray-head:8265. Unset: the worker starts a Ray of its own on this machine."
        ),
    )
    poll_interval_seconds: float = Field(
        default=5.0,
        gt=0,
        description=(
            "Seconds between two looks at the jobs of a cluster when many run (more than 10). "
            "With fewer, the worker looks every second, or at this interval if it is shorter."
        ),
    )
    unreachable_limit_seconds: float = Field(
        default=3600.0,
        gt=0,
        description=(
            "Seconds for which a cluster may be unreachable before its runs are marked Crashed, "
            "and then only those that give no sign of life in Prefect (no new log or state)."
        ),
    )
    ship_driver: bool = Field(
        default=True,
        description=(
            "Whether the worker brings this package to the clusters of its jobs. Without, it has "
            "to be installed there, in this version."
        ),
    )
    node_secrets: dict[str, NodeVariable] = Field(
        default_factory=dict,
        description=(
            "Which variables of the Ray nodes hold the secrets that a driver needs, as JSON. "
            'Example: {"PREFECT_API_KEY": "TEAM_PREFECT_KEY"}. Only the names are sent. Not '
            "needed where the nodes have PREFECT_API_KEY itself."
        ),
    )
    send_secrets: bool = Field(
        default=False,
        description=(
            "Whether to send the worker's own PREFECT_API_KEY, PREFECT_API_AUTH_STRING and custom "
            "headers in clear with each job. Everyone who can list the cluster's jobs can then "
            "read them, also afterwards."
        ),
    )


def worker_settings() -> RayWorkerSettings:
    """Return the settings as the environment has them now.

    Raises:
        pydantic.ValidationError: A value does not parse; the message names the setting.
    """
    return RayWorkerSettings()
