"""The job variable `kuberay`: what it refuses, and how an override meets the pool's default."""

from typing import Any

import pytest
from pydantic import ValidationError

from prefect_ray_worker.config.cluster_source import over_pool_default
from prefect_ray_worker.config.kuberay import KubeRay

POOL: dict[str, Any] = {
    "image": "ray:2.60.0",
    "head": {"cpus": 2, "memory": "8GiB"},
    "secrets": {"A": "s/a"},
    "kubeconfig": {"$ref": {"block_document_id": "1"}},
}


def template(default: object) -> dict[str, Any]:
    return {"variables": {"properties": {"kuberay": {"default": default}}}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "names neither image nor manifest"),
        ({"image": "a", "manifest": {}, "head": {}}, "manifest together with head"),
        ({"image": "a", "secrets": {"KEY": "no-key"}}, "name of a Kubernetes Secret"),
        ({"image": "a", "labels": {"ray.io/cluster": "x"}}, "uses ray.io/cluster"),
        ({"image": "a", "workers": [{"name": "A_b"}]}, "no name of a worker group"),
        ({"image": "a", "workers": [{"name": "a", "min": 2, "max": 1}]}, "max below its min"),
        ({"image": "a", "workers": [{"name": "a", "min": 0}]}, "never have a pod"),
        ({"image": "a", "workers": [{"name": "a"}, {"name": "a"}]}, "groups named a"),
        (
            {"image": "a", "scope": "shared", "keep_failed_seconds": 60},
            "names keep_failed_seconds, which is for scope run",
        ),
        ({"image": "a", "idle_seconds": 60}, "names idle_seconds, which is for scope shared"),
        ({"image": "a", "head": {"memory": "much"}}, "not an amount of memory"),
        ({"image": "a", "address_template": "https://ray/{cluster}"}, "placeholders: cluster"),
        ({"image": "a", "address_template": "https://ray/"}, "URL of a cluster's dashboard"),
        ({"image": "a", "token_secret": "ray_token"}, "token_secret\n.*kubectl get"),
        ({"image": "a", "service_account": "-ray"}, "service_account\n.*kubectl get"),
        ({"image": "a", "idle": 3}, "Extra inputs"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        KubeRay(**fields)


def test_an_empty_name_is_none() -> None:
    """The worker had ignored one, and then refused it."""
    asked = KubeRay(image="a", token_secret="", service_account="")
    assert (asked.token_secret, asked.service_account) == (None, None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kuberay": {"image": "ray:2.55.0"}}, {**POOL, "image": "ray:2.55.0"}),
        ({"kuberay.image": "ray:2.55.0"}, {**POOL, "image": "ray:2.55.0"}),
        (
            {"kuberay": {"head": {"cpus": 4}}},
            {**POOL, "head": {"cpus": 4, "memory": "8GiB"}},
        ),
        ({"kuberay.head.cpus": 4}, {**POOL, "head": {"cpus": 4, "memory": "8GiB"}}),
        ({"kuberay": {"head": None}}, {**POOL, "head": None}),
        (
            {"kuberay": {"image": "b"}, "kuberay.image": "a", "kuberay.queue": "q"},
            {**POOL, "image": "b", "queue": "q"},
        ),
        (
            {"kuberay": {"kubeconfig": {"$ref": {"block_document_id": "2"}}}},
            {**POOL, "kubeconfig": {"$ref": {"block_document_id": "2"}}},
        ),
    ],
)
def test_an_override_of_one_field_keeps_the_others_of_the_pool(
    values: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = repr(POOL)
    merged = over_pool_default(template(POOL), {**values, "env": {"A": "1"}})
    assert merged == {"kuberay": expected, "env": {"A": "1"}}
    assert repr(POOL) == before


def test_a_label_called_type_replaces_nothing_else() -> None:
    pool = template({**POOL, "labels": {"type": "batch", "team": "a"}})
    merged = over_pool_default(pool, {"kuberay": {"labels": {"type": "gpu"}}})
    assert merged["kuberay"] == {**POOL, "labels": {"type": "gpu", "team": "a"}}


@pytest.mark.parametrize("values", [{"kuberay": None}, {"address": "http://head:8265"}, {}])
def test_a_run_that_overrides_no_field_is_left_alone(values: dict[str, Any]) -> None:
    assert over_pool_default(template(POOL), values) == values
