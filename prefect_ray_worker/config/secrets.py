"""Which of the worker's Prefect settings travel to a job, and how secrets reach it. Pure.

The Jobs API shows `env_vars`, `entrypoint` and `metadata` in plain text to everyone who can reach
it, as long as the record exists. So by default no secret is in any of them: the nodes' own
environment holds it, or a setting names the variable of the nodes that does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

_API = "The driver uses the same API as the worker, in the same way."
_LOGS = "Runs log as configured for the worker."
_DEFAULTS = "Flows and tasks have the same defaults wherever they run."

TRAVELS: Mapping[str, str] = {
    "PREFECT_API_URL": _API,
    "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": _API,
    "PREFECT_API_ENABLE_HTTP2": _API,
    "PREFECT_API_REQUEST_TIMEOUT": _API,
    "PREFECT_CLIENT_MAX_RETRIES": _API,
    "PREFECT_CLIENT_RETRY_JITTER_FACTOR": _API,
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": _API,
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": _API,
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": _API,
    "PREFECT_CLOUD_API_URL": _API,
    "PREFECT_CLOUD_UI_URL": _API,
    "PREFECT_UI_URL": _API,
    "PREFECT_LOGGING_LEVEL": _LOGS,
    "PREFECT_INTERNAL_LOGGING_LEVEL": _LOGS,
    "PREFECT_LOGGING_EXTRA_LOGGERS": _LOGS,
    "PREFECT_LOGGING_LOG_PRINTS": _LOGS,
    "PREFECT_LOGGING_TO_API_ENABLED": _LOGS,
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": _LOGS,
    "PREFECT_LOGGING_TO_API_BATCH_SIZE": _LOGS,
    "PREFECT_LOGGING_TO_API_MAX_LOG_SIZE": _LOGS,
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": _LOGS,
    "PREFECT_CLOUD_MAX_LOG_SIZE": _LOGS,
    "PREFECT_FLOWS_DEFAULT_RETRIES": _DEFAULTS,
    "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": _DEFAULTS,
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": _DEFAULTS,
    "PREFECT_TASKS_DEFAULT_RETRIES": _DEFAULTS,
    "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": _DEFAULTS,
    "PREFECT_TASKS_DEFAULT_PERSIST_RESULT": _DEFAULTS,
    "PREFECT_TASKS_DEFAULT_NO_CACHE": _DEFAULTS,
    "PREFECT_TASKS_DISABLE_CACHING": _DEFAULTS,
    "PREFECT_TASKS_REFRESH_CACHE": _DEFAULTS,
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": _DEFAULTS,
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": _DEFAULTS,
    "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK": _DEFAULTS,
}
"""The settings of the worker that a job gets, each with the reason.

No other setting travels: most describe the worker's machine or the server (paths, ports, limits of
processes) and are wrong, or harmful, on a node.
"""

OF_A_DRIVER = frozenset(
    {"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_CLIENT_CUSTOM_HEADERS"}
)
"""The secrets that a driver can need for the Prefect API."""


@dataclass(frozen=True)
class Delivery:
    """How the secrets among the worker's settings reach a job.

    Attributes:
        node_secrets: Prefect's setting -> the variable of the nodes that holds it.
        in_clear: Whether to send the worker's own, for all to see.
    """

    node_secrets: Mapping[str, str] = field(default_factory=dict[str, str])
    in_clear: bool = False

    def applied_to(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a job that the worker's settings make.

        Args:
            settings: The worker's settings, under Prefect's own names for them.
        """
        sent = {name: value for name, value in settings.items() if name in TRAVELS}
        if self.in_clear:
            sent |= {name: value for name, value in settings.items() if name in OF_A_DRIVER}
        elif "PREFECT_API_URL" in sent:
            sent["PREFECT_API_URL"] = without_userinfo(sent["PREFECT_API_URL"])
        references = {name: f"${{{variable}}}" for name, variable in self.node_secrets.items()}
        return {**sent, **references}


NO_SECRETS = Delivery()


def warnings_of(*, send_secrets: bool, api_url: str, auto_install: bool) -> list[str]:
    """Return what a worker that starts with these settings has to warn of.

    Args:
        send_secrets: `PREFECT_INTEGRATIONS_RAY_WORKER_SEND_SECRETS`.
        api_url: `PREFECT_API_URL`.
        auto_install: `PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES`.
    """
    warnings: list[str] = []
    if send_secrets:
        warnings.append(
            "PREFECT_INTEGRATIONS_RAY_WORKER_SEND_SECRETS is on: the Prefect API key goes in "
            "clear into every Ray Job, for everyone to read who can list the cluster's jobs."
        )
    elif without_userinfo(api_url) != api_url:
        warnings.append(
            "PREFECT_API_URL holds a user and password. Jobs get the URL without them: give the "
            "nodes PREFECT_API_AUTH_STRING=user:password."
        )
    if auto_install:
        warnings.append(
            "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES has no effect on Ray Jobs. List the packages "
            "in the job variable runtime_env.uv."
        )
    return warnings


def without_userinfo(url: str) -> str:
    """Return a URL without the user and password that it may hold."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None or parts.hostname is None:
        return url.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
