"""Which of the worker's settings a job may see, and how secrets reach it: pure.

The Jobs API shows `env_vars`, `entrypoint` and `metadata` in clear to everyone who can reach it,
for as long as the record lives. So by default no secret is in any of them: the nodes' own
environment holds it, or a setting names the variable of the nodes that does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# These describe the machine of the worker, or the server, and are wrong or harmful elsewhere.
_STAYS_HERE = re.compile(
    r"^PREFECT_(HOME|PROFILES_PATH|LOCAL_STORAGE_PATH|MEMO_STORE_PATH|LOGGING_CONFIG_PATH|"
    r"LOGGING_SETTINGS_PATH|SERVER_.*|API_DATABASE_.*|WORKER_.*|INTEGRATIONS_RAY_.*|"
    r"TEST_.*|UI_.*|CLI_.*)$"
)

OF_A_DRIVER = frozenset(
    {"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_CLIENT_CUSTOM_HEADERS"}
)
"""The secrets that a driver may need, to talk to the Prefect API."""


@dataclass(frozen=True)
class Delivery:
    """How the secrets among the worker's settings reach a job.

    Attributes:
        node_secrets: Prefect's setting -> the variable of the nodes that holds it.
        in_clear: Whether to send the worker's own, for all to see.
    """

    node_secrets: Mapping[str, str] = field(default_factory=dict[str, str])
    in_clear: bool = False

    def applied_to(self, settings: Mapping[str, str], *, secret: frozenset[str]) -> dict[str, str]:
        """Return the environment of a job that the worker's settings make.

        Args:
            settings: Environment variables that describe the worker's settings.
            secret: Names of those that hold secrets.
        """
        hidden = secret - OF_A_DRIVER if self.in_clear else secret
        references = {name: f"${{{variable}}}" for name, variable in self.node_secrets.items()}
        return {**portable_settings(settings, secret=hidden), **references}


NO_SECRETS = Delivery()


def portable_settings(settings: Mapping[str, str], *, secret: frozenset[str]) -> dict[str, str]:
    """Return those of the worker's Prefect settings that make sense, and may be seen, elsewhere.

    Args:
        settings: Environment variables that describe the worker's settings.
        secret: Names of those that hold secrets.
    """
    return {
        name: value
        for name, value in settings.items()
        if name not in secret and not _STAYS_HERE.match(name)
    }
