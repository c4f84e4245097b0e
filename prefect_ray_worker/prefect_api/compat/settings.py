"""Private names of Prefect's settings and blocks."""

from functools import cache
from uuid import UUID

from prefect.settings import Settings
from prefect.settings.base import PrefectBaseSettings
from pydantic import AliasChoices


def setting_of_variable(name: str) -> str:
    """Return the canonical name of the setting that an environment variable sets.

    Many settings have an alias: `PREFECT_TASK_DEFAULT_RETRIES` returns
    `PREFECT_TASKS_DEFAULT_RETRIES`. Any other variable is returned unchanged.
    """
    return _names_of_settings().get(name, name)


@cache
def _names_of_settings() -> dict[str, str]:
    """Map each variable that sets a setting to the setting's canonical name.

    Prefect does not document the models under `Settings` or their aliases (read from 3.8.8).
    """
    names: dict[str, str] = {}

    def read(model: type[PrefectBaseSettings]) -> None:
        prefix = str(model.model_config.get("env_prefix") or "")
        for field, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, PrefectBaseSettings):
                read(kind)
                continue
            alias, own = info.validation_alias, f"{prefix}{field}".upper()
            choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
            names.update({c.upper(): own for c in choices if isinstance(c, str)} | {own: own})

    read(Settings)
    return names


def saved_block_id(block: object) -> UUID | None:
    """Return the id of the document that a block was saved as, or None (3.8.8)."""
    return getattr(block, "_block_document_id", None)
