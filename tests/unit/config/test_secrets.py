"""What of the worker's settings a job may see, and how secrets reach it."""

import pytest
from pydantic import ValidationError

from prefect_ray_worker.config.secrets import NO_SECRETS, Delivery
from prefect_ray_worker.settings import worker_settings

SETTINGS = {
    "PREFECT_API_URL": "http://server/api",
    "PREFECT_API_KEY": "pnu_secret",
    "PREFECT_API_AUTH_STRING": "admin:pass",
    "PREFECT_CLIENT_CUSTOM_HEADERS": '{"Proxy-Authorization": "x"}',
    "PREFECT_HOME": "/root/.prefect",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgres://u:p@h/db",
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgres://u:p@h/db",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS": "http://head:8265",
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_SOME_FUTURE_PASSWORD": "p",
}
PORTABLE = {"PREFECT_API_URL": "http://server/api", "PREFECT_LOGGING_LEVEL": "DEBUG"}


def test_by_default_no_secret_leaves_the_worker() -> None:
    assert NO_SECRETS.applied_to(SETTINGS) == PORTABLE


def test_named_variables_of_the_nodes_are_referred_to() -> None:
    delivery = Delivery(node_secrets={"PREFECT_API_KEY": "TEAM_KEY"})
    assert delivery.applied_to(SETTINGS) == {
        **PORTABLE,
        "PREFECT_API_KEY": "${TEAM_KEY}",
    }


def test_in_clear_sends_what_a_driver_needs_and_no_other_secret() -> None:
    sent = Delivery(in_clear=True).applied_to(SETTINGS)
    assert sent["PREFECT_API_KEY"] == "pnu_secret"
    assert sent["PREFECT_API_AUTH_STRING"] == "admin:pass"
    assert "PREFECT_SOME_FUTURE_PASSWORD" not in sent
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in sent


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = "PREFECT_INTEGRATIONS_RAY_WORKER_"
    monkeypatch.setenv(f"{prefix}NODE_SECRETS", '{"PREFECT_API_KEY": "TEAM_KEY"}')
    monkeypatch.setenv(f"{prefix}SEND_SECRETS", "true")
    monkeypatch.setenv(f"{prefix}SHIP_DRIVER", "false")
    settings = worker_settings()
    assert settings.node_secrets == {"PREFECT_API_KEY": "TEAM_KEY"}
    assert settings.send_secrets
    assert not settings.ship_driver


def test_a_value_in_place_of_a_variable_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PREFECT_INTEGRATIONS_RAY_WORKER_NODE_SECRETS", '{"PREFECT_API_KEY": "pnu_abc"}'
    )
    with pytest.raises(ValidationError, match="node_secrets"):
        worker_settings()
