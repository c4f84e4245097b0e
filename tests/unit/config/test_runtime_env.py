"""Who wins where two speak about one thing, and what Ray makes of it."""

import os
import re
from copy import deepcopy

import pytest

from prefect_ray_worker import RayWorker
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.runtime_env import RuntimeEnv, can_ship, compose
from prefect_ray_worker.errors import InvalidConfiguration
from tests.unit.config import CLIENT


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


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ("plain", "plain"),
        ("pa$$word", "pa$$word"),
        ("$HOME", "$HOME"),
        ("base64==$x", "base64==$x"),
        ("${lower}", "${lower}"),
        ("${ON_THE_NODE}", "from the node"),
        ("a$b${ON_THE_NODE}", "a$bfrom the node"),
        ("${NOT_THERE}", ""),
    ],
)
def test_dollars_in_env_arrive_as_written(
    value: str, arrives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray expands `$NAME` and has no escape; only `${UPPER_CASE}` is meant to be expanded."""
    monkeypatch.setenv("ON_THE_NODE", "from the node")
    result = compose(RuntimeEnv(), inherited={}, env={"A": value}, stop_grace_seconds=1)
    assert expanded_like_ray(result["env_vars"])["A"] == arrives


def expanded_like_ray(env_vars: dict[str, str]) -> dict[str, str]:
    """What `ray/_private/utils.py::update_envs` of Ray 2.60 does, on sorted variables."""
    before = dict(os.environ)
    try:
        for name, value in sorted(env_vars.items()):
            os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
        return {name: os.environ[name] for name in env_vars}
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_rays_own_env_vars_keep_rays_own_meaning() -> None:
    result = compose(
        RuntimeEnv(env_vars={"A": "$HOME/x"}), inherited={}, env={}, stop_grace_seconds=1
    )
    assert result["env_vars"]["A"] == "$HOME/x"


def test_our_package_comes_before_the_users() -> None:
    asked = RuntimeEnv(py_modules=["s3://b/mine.zip"], working_dir="s3://b/code.zip")
    result = compose(asked, inherited={}, env={}, stop_grace_seconds=1, package="gcs://ours.zip")
    assert result["py_modules"] == ["gcs://ours.zip", "s3://b/mine.zip"]
    assert result["working_dir"] == "s3://b/code.zip"


def test_nothing_can_be_shipped_beside_an_image() -> None:
    assert can_ship(RuntimeEnv(pip=["a"]))
    assert not can_ship(RuntimeEnv(image_uri="docker.io/x"))
    assert not can_ship(RuntimeEnv.model_validate({"container": {"image": "x"}}))


@pytest.mark.parametrize("name", ["", "A=B", "A\0"], ids=["empty", "equals sign", "NUL"])
async def test_a_variable_that_no_process_can_have_is_refused(name: str) -> None:
    """Ray accepted it, and could not start the job's driver."""
    for variable, values in (
        ("env", {"env": {name: "1"}}),
        ("runtime_env.env_vars", {"runtime_env": {"env_vars": {name: "1"}}}),
    ):
        template = RayWorker.get_default_base_job_template()
        with pytest.raises(InvalidConfiguration, match=f"'{variable}' .*has a variable named"):
            await RayJobConfiguration.from_template_and_values(template, values, client=CLIENT)


async def test_an_env_that_cannot_be_merged_with_that_of_the_pool_is_refused() -> None:
    template = deepcopy(RayWorker.get_default_base_job_template())
    template["variables"]["properties"]["env"]["default"] = {"A": "1"}
    with pytest.raises(InvalidConfiguration, match="'env' is not a mapping") as refused:
        await RayJobConfiguration.from_template_and_values(template, {"env": ["a"]}, client=CLIENT)
    assert "Write" in str(refused.value)
