"""Which of the worker's settings a job gets, and who wins: "What travels to the cluster"."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.settings.context import get_current_settings, temporary_settings
from prefect.settings.legacy import _get_settings_fields

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.secrets import NO_SECRETS, TRAVELS, Delivery, warnings_of
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api.compat.settings import setting_of_variable
from prefect_ray_worker.worker import RayWorker
from tests.unit.config import CLIENT

TEMPLATE = RayWorker.get_default_base_job_template()


@contextmanager
def worker_with(**settings: Any) -> Iterator[None]:
    known = _get_settings_fields(type(get_current_settings()))
    with temporary_settings({known[name]: value for name, value in settings.items()}):
        yield


async def environment(delivery: Delivery = NO_SECRETS, **values: Any) -> dict[str, str]:
    """Return the `env_vars` of a job of a run with these job variables."""
    configuration = await RayJobConfiguration.from_template_and_values(
        TEMPLATE, values, client=CLIENT
    )
    flow = Flow(id=uuid4(), name="f", labels={})
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=flow.id, name="r"), flow=flow)
    return configuration.submission_request("prefect-id", delivery=delivery).runtime_env["env_vars"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("PREFECT_CLIENT_METRICS_ENABLED", True),
        ("PREFECT_CLIENT_METRICS_PORT", 4999),
        ("PREFECT_API_SSL_CERT_FILE", "/etc/worker.pem"),
        ("PREFECT_LOCAL_STORAGE_PATH", "/worker/results"),
        ("PREFECT_LOGGING_SETTINGS_PATH", "/worker/logging.yml"),
        ("PREFECT_RUNNER_PROCESS_LIMIT", 3),
        ("PREFECT_TASK_RUNNER_THREAD_POOL_MAX_WORKERS", 2),
        ("PREFECT_LOGGING_COLORS", True),
    ],
)
async def test_what_describes_the_worker_s_machine_stays_there(setting: str, value: Any) -> None:
    with worker_with(**{setting: value}):
        sent = await environment()
    assert [name for name in sent if name.startswith("PREFECT_") and "_RAY_" not in name] == []


@pytest.mark.parametrize(
    ("setting", "of_the_worker", "name", "of_the_job"),
    [
        (
            "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK",
            "s3-bucket/worker",
            "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK",
            "s3-bucket/job",
        ),
        ("PREFECT_TASK_DEFAULT_RETRIES", 3, "PREFECT_TASK_DEFAULT_RETRIES", "0"),
        ("PREFECT_TASK_DEFAULT_RETRIES", 3, "PREFECT_TASKS_DEFAULT_RETRIES", "0"),
        ("PREFECT_LOGGING_INTERNAL_LEVEL", "DEBUG", "PREFECT_LOGGING_INTERNAL_LEVEL", "ERROR"),
        ("PREFECT_API_URL", "http://worker/api", "PREFECT_API_URL", "http://job/api"),
    ],
)
@pytest.mark.parametrize("variable", ["env", "runtime_env"])
async def test_the_job_s_own_wins_under_every_name_of_a_setting(
    setting: str, of_the_worker: Any, name: str, of_the_job: str, variable: str
) -> None:
    own = {name: of_the_job}
    values = {"env": own} if variable == "env" else {"runtime_env": {"env_vars": own}}
    with worker_with(**{setting: of_the_worker}):
        sent = await environment(**values)
    same = {n: v for n, v in sent.items() if setting_of_variable(n) == setting_of_variable(name)}
    assert same == own


async def test_env_wins_over_runtime_env_under_every_name_of_a_setting() -> None:
    sent = await environment(
        runtime_env={"env_vars": {"PREFECT_TASKS_DEFAULT_RETRIES": "2"}},
        env={"PREFECT_TASK_DEFAULT_RETRIES": "0"},
    )
    assert "PREFECT_TASKS_DEFAULT_RETRIES" not in sent
    assert sent["PREFECT_TASK_DEFAULT_RETRIES"] == "0"


async def test_null_removes_a_setting_under_every_name() -> None:
    with worker_with(PREFECT_TASK_DEFAULT_RETRIES=3):
        assert "PREFECT_TASKS_DEFAULT_RETRIES" in await environment()
        sent = await environment(env={"PREFECT_TASK_DEFAULT_RETRIES": None})
    assert "PREFECT_TASKS_DEFAULT_RETRIES" not in sent


async def test_the_job_may_ask_for_what_the_worker_does_not_send() -> None:
    own = {
        "PREFECT_CLIENT_METRICS_ENABLED": "true",
        "PREFECT_LOCAL_STORAGE_PATH": "/mnt/shared",
        "PREFECT_API_SSL_CERT_FILE": "/etc/node.pem",
    }
    with worker_with(
        PREFECT_LOCAL_STORAGE_PATH="/worker/results", PREFECT_API_SSL_CERT_FILE="/etc/worker.pem"
    ):
        sent = await environment(env=own)
    assert own.items() <= sent.items()


def test_every_setting_that_travels_is_one_of_prefect_s() -> None:
    assert {name: setting_of_variable(name) for name in TRAVELS} == {name: name for name in TRAVELS}


@pytest.mark.parametrize("variable", ["env", "runtime_env"])
async def test_auto_install_is_refused_with_what_does_it_instead(variable: str) -> None:
    """`PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES` was ignored in silence."""
    own: dict[str, Any] = {"PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": True}
    values: dict[str, Any] = (
        {"env": own} if variable == "env" else {"runtime_env": {"env_vars": own}}
    )
    with pytest.raises(InvalidConfiguration, match=r"AUTO_INSTALL.*runtime_env\.uv.*command"):
        await environment(**values)
    command = "exec python -m prefect flow-run execute"
    assert own.keys() <= (await environment(**values, command=command)).keys()
    own["PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES"] = False
    await environment(**values)


def test_a_worker_warns_of_settings_that_do_less_than_they_say() -> None:
    none = {"send_secrets": False, "api_url": "http://server/api", "auto_install": False}
    assert warnings_of(**none) == []
    [said] = warnings_of(**{**none, "auto_install": True})
    assert "runtime_env.uv" in said
    [said] = warnings_of(**{**none, "api_url": "http://admin:hunter2@server/api"})
    assert "PREFECT_API_AUTH_STRING" in said
    assert "hunter2" not in said


async def test_credentials_in_the_api_url_stay_with_the_worker() -> None:
    with worker_with(PREFECT_API_URL="http://admin:hunter2@server:4200/api"):
        sent = await environment()
        in_clear = await environment(Delivery(in_clear=True))
    assert "hunter2" not in json.dumps(sent)
    assert sent["PREFECT_API_URL"] == "http://server:4200/api"
    assert in_clear["PREFECT_API_URL"] == "http://admin:hunter2@server:4200/api"
