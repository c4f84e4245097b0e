"""`ray_job` at decoration: typed like the job variables, light, and without checks."""

from typing import Any

import pytest
from prefect import flow
from prefect.flows import InfrastructureBoundFlow

from prefect_ray_worker import ray_job
from prefect_ray_worker.adhoc.decorator import RayJobVariables
from prefect_ray_worker.config.variables import FORM_ORDER
from tests.forks import Forks


@ray_job("any-pool", ["config.yaml"], entrypoint_num_cpus=1)
@flow(retries=3)
def train(rows: int) -> int:
    return rows


def test_keyword_arguments_are_the_job_variables() -> None:
    assert sorted(RayJobVariables.__annotations__) == sorted(FORM_ORDER)


def test_bound_flow_is_one_of_prefects() -> None:
    """The command `prefect flow-run retry --entrypoint` asks for that class."""
    assert isinstance(train, InfrastructureBoundFlow)
    assert (train.name, train.retries, train.work_pool) == ("train", 3, "any-pool")
    assert train.include_files == ["config.yaml"]
    assert train.worker_cls.type == "ray"


def test_options_keep_the_binding() -> None:
    other = train.with_options(name="other", job_variables={}, stream_logs=False)
    assert (type(other), other.name, other.job_variables) == (type(train), "other", {})
    assert (other.retries, other.terms.stream_logs, other.terms.include_files) == (
        3, False, ("config.yaml",),
    )  # fmt: skip
    assert train.job_variables == {"entrypoint_num_cpus": 1}


def test_launcher_is_refused_by_name() -> None:
    """Prefect's own decorators take one; here nothing is launched."""
    options: dict[str, Any] = {"launcher": "python"}
    with pytest.raises(TypeError, match="takes no launcher"):
        ray_job("any-pool", **options)


def test_decorating_imports_no_worker_and_no_ray(forks: Forks) -> None:
    script = (
        "import sys\nfrom prefect import flow\nfrom prefect_ray_worker import ray_job\n"
        "@ray_job('pool')\n@flow\ndef train(): ...\n"
        "print([m for m in ('ray', 'prefect_ray_worker.worker', 'prefect_ray_worker.config')"
        " if m in sys.modules])"
    )
    assert forks.run(script)[0].strip() == "[]"
