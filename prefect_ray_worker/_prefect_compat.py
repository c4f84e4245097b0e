"""Every name of Prefect that is not promised to us, in one place.

After an upgrade of Prefect, this is the file to check; `tests/unit/test_prefect_compat.py`
fails by name when one has gone.
"""

from typing import TYPE_CHECKING, Any

from prefect.settings import get_current_settings

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from logging import Logger, LoggerAdapter

    from prefect.workers.base import BaseWorker

# Not a SecretStr in `prefect/settings/models/client.py` (3.8.8), but it carries credentials.
_ALSO_SECRET = frozenset({"PREFECT_CLIENT_CUSTOM_HEADERS"})


def secret_setting_names() -> frozenset[str]:
    """Return the environment variables of Prefect's settings that hold secrets.

    `Settings.to_environment_variables(include_secrets=)` is not documented (read from 3.8.8):
    whatever it masks is a secret, so that a secret setting that Prefect adds is covered.
    """
    settings = get_current_settings()
    clear = settings.to_environment_variables(exclude_unset=True, include_secrets=True)
    masked = settings.to_environment_variables(exclude_unset=True, include_secrets=False)
    return _ALSO_SECRET | {name for name, value in clear.items() if masked.get(name) != value}


def exit_stack(worker: "BaseWorker[Any, Any, Any]") -> "AsyncExitStack":
    """Return the stack that `BaseWorker.setup` fills and `teardown` leaves (3.8.8).

    What is entered before `super().setup()` outlives the worker's runs; there is no hook for it.
    """
    return worker._exit_stack  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def worker_logger(worker: "BaseWorker[Any, Any, Any]") -> "Logger | LoggerAdapter[Logger]":
    """Return the worker's own logger, which goes to its page in the UI as well (3.8.8)."""
    return worker._logger  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


OVERRIDDEN = ("_initiate_run", "_documentation_url", "_logo_url", "_description")
"""Members of `BaseWorker` (3.8.8) that `RayWorker` defines and Prefect reads, although private:
there is no public way to say these things."""
