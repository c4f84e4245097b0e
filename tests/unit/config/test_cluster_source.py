"""The job variable `cluster_source`: what it refuses, and how an override meets the pool's."""

from typing import Any

import pytest

from prefect_ray_worker import RayWorker
from prefect_ray_worker.config.cluster_source import over_pool_default
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import InvalidConfiguration
from tests.unit.config import CLIENT


async def configured(**values: Any) -> RayJobConfiguration:
    template = RayWorker.get_default_base_job_template()
    return await RayJobConfiguration.from_template_and_values(template, values, client=CLIENT)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"cluster_source": {"m": 2}}, {"type": "a", "n": 1, "m": 2}),
        ({"cluster_source.n": 3}, {"type": "a", "n": 3}),
        ({"cluster_source": {"type": "a", "m": 2}}, {"type": "a", "n": 1, "m": 2}),
        ({"cluster_source": {"type": "b"}}, {"type": "b"}),
        (
            {"cluster_source": {"type": "a", "m": 2}, "cluster_source.n": 3},
            {"type": "a", "n": 3, "m": 2},
        ),
    ],
)
def test_fields_are_merged_and_another_source_takes_the_place(
    override: dict[str, Any], expected: dict[str, Any]
) -> None:
    pool = {"variables": {"properties": {"cluster_source": {"default": {"type": "a", "n": 1}}}}}
    assert over_pool_default(pool, override)["cluster_source"] == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"port": 1}, "names no type"),
        ({"type": "kuberay"}, "no source can have"),
        ({"type": "a b"}, "no source can have"),
        (
            {"type": "a", "start_timeout_seconds": 0},
            "start_timeout_seconds that is not",
        ),
        ({"type": "a", "keep_failed_seconds": "s3cret"}, "keep_failed_seconds that is not"),
    ],
)
async def test_what_cannot_work_is_refused(value: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfiguration, match=f"'cluster_source' .*{said}") as caught:
        await configured(cluster_source=value)
    assert "s3cret" not in str(caught.value)


async def test_a_field_of_a_value_that_has_none_is_refused_by_name() -> None:
    with pytest.raises(InvalidConfiguration, match=r"'kuberay.head.cpus' .*Remove one of the two"):
        await configured(**{"kuberay.head": None, "kuberay.head.cpus": 3})


@pytest.mark.parametrize(
    "other", [{"address": "http://a:8265"}, {"kuberay": {"image": "ray:2.60.0"}}]
)
async def test_a_source_stands_alone(other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(InvalidConfiguration, match=f"'cluster_source' .*stands beside {name}"):
        await configured(cluster_source={"type": "a"}, **other)


def test_a_key_of_the_source_called_type_is_one_like_any_other() -> None:
    default = {"type": "a", "disk": {"type": "ssd", "size": 10}}
    pool = {"variables": {"properties": {"cluster_source": {"default": default}}}}
    merged = over_pool_default(pool, {"cluster_source.disk.type": "hdd"})
    assert merged["cluster_source"] == {"type": "a", "disk": {"type": "hdd", "size": 10}}


def test_a_run_may_write_its_fields_in_both_ways() -> None:
    values = {"cluster_source": {"type": "a"}, "cluster_source.n": 3}
    assert over_pool_default({}, values)["cluster_source"] == {"type": "a", "n": 3}
