"""What of the worker's settings a job may see, and how secrets reach it."""

import pytest

from prefect_ray_worker.config.secrets import NO_SECRETS, Delivery
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.settings import worker_settings

PREFIX = "PREFECT_INTEGRATIONS_RAY_WORKER_"
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
    monkeypatch.setenv(f"{PREFIX}NODE_SECRETS", '{"PREFECT_API_KEY": "TEAM_KEY"}')
    monkeypatch.setenv(f"{PREFIX}SEND_SECRETS", "true")
    monkeypatch.setenv(f"{PREFIX}SHIP_DRIVER", "false")
    settings = worker_settings()
    assert settings.node_secrets == {"PREFECT_API_KEY": "TEAM_KEY"}
    assert settings.send_secrets
    assert not settings.ship_driver


def test_a_value_in_place_of_a_variable_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PREFECT_INTEGRATIONS_RAY_WORKER_NODE_SECRETS", '{"PREFECT_API_KEY": "pnu_abc"}'
    )
    with pytest.raises(InvalidConfiguration, match="NODE_SECRETS") as refused:
        worker_settings()
    assert "pnu_abc" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        (f"{PREFIX}ADRESS", f"Did you mean {PREFIX}ADDRESS?"),
        (f"{PREFIX}NO_SUCH_THING", "The settings are: ADDRESS"),
        ("PREFECT_INTEGRATION_RAY_WORKER_ADDRESS", f"Did you mean {PREFIX}ADDRESS?"),
        ("PREFECT_RAY_WORKER_ADDRESS", f"Did you mean {PREFIX}ADDRESS?"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_near_miss(
    variable: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt address started a local Ray for production flows without a word."""
    monkeypatch.setenv(variable, "http://head:8265")
    with pytest.raises(InvalidConfiguration) as refused:
        worker_settings()
    assert variable in str(refused.value)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("POLL_INTERVAL_SECONDS", "hunter2", "valid number"),
        ("NODE_SECRETS", "hunter2", "is not JSON"),
        ("SEND_SECRETS", "hunter2", "boolean"),
    ],
)
def test_a_bad_value_of_a_setting_is_named_in_one_line(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(InvalidConfiguration) as refused:
        worker_settings()
    message = str(refused.value)
    assert f"{PREFIX}{name}" in message
    assert says in message
    assert value not in message
    assert "\n" not in message


def test_our_own_note_to_drivers_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_RAY_WORKER_PREFECT_VERSION", "3.8.8")
    worker_settings()
