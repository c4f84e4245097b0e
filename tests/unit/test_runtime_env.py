"""Who wins where two speak about one thing, and what never leaves the worker."""

from prefect_ray_worker.runtime_env import RuntimeEnv, compose, portable_settings


def test_later_source_wins() -> None:
    result = compose(
        RuntimeEnv(env_vars={"A": "runtime_env", "B": "runtime_env"}),
        inherited={"A": "worker", "B": "worker", "C": "worker"},
        env={"A": "env"},
        stop_grace_seconds=30,
    )
    assert result["env_vars"] == {
        "A": "env",
        "B": "runtime_env",
        "C": "worker",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
    }


def test_user_may_set_rays_own_stop_wait() -> None:
    result = compose(
        RuntimeEnv(), inherited={}, env={"RAY_JOB_STOP_WAIT_TIME_S": "5"}, stop_grace_seconds=30
    )
    assert result["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "5"


def test_stop_wait_is_an_integer() -> None:
    """Ray parses it with `int()` and fails the job on "2.5"."""
    result = compose(RuntimeEnv(), inherited={}, env={}, stop_grace_seconds=2.5)
    assert result["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "3"


def test_unset_keys_stay_out_and_others_pass_through() -> None:
    asked = RuntimeEnv.model_validate(
        {"pip": ["a"], "config": {"eager_install": False, "log_files": ["x"]}, "plugin_key": [1]}
    )
    result = compose(asked, inherited={}, env={}, stop_grace_seconds=1)
    assert sorted(result) == ["config", "env_vars", "pip", "plugin_key"]
    assert result["config"] == {"eager_install": False, "log_files": ["x"]}


def test_equal_jobs_share_one_environment() -> None:
    """Ray keeps every distinct environment on every node for ever."""
    results = [
        compose(RuntimeEnv(env_vars=own), inherited={}, env=env, stop_grace_seconds=1)
        for own, env in (({"A": "1", "B": "2"}, {}), ({"B": "2"}, {"A": "1"}))
    ]
    assert str(results[0]) == str(results[1])


def test_secrets_and_the_workers_own_settings_stay_here() -> None:
    settings = {
        "PREFECT_API_URL": "http://server/api",
        "PREFECT_API_KEY": "pnu_secret",
        "PREFECT_HOME": "/root/.prefect",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgres://u:p@h/db",
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgres://u:p@h/db",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS": "http://head:8265",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
    }
    assert portable_settings(settings, secret=frozenset({"PREFECT_API_KEY"})) == {
        "PREFECT_API_URL": "http://server/api",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
    }
