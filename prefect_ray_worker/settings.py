"""Knobs of the worker process, read from the environment the way Prefect's integrations do.

Every name below is prefixed with `PREFECT_INTEGRATIONS_RAY_WORKER_`, and may also stand in
`prefect.toml` under `[integrations.ray.worker]`.
"""

from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic import Field


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


def worker_settings() -> RayWorkerSettings:
    """Return the settings as the environment has them now.

    Raises:
        pydantic.ValidationError: A value does not parse; the message names the setting.
    """
    return RayWorkerSettings()
