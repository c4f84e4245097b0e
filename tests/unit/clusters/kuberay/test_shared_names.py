"""The names of shared clusters: equal for equal job variables, and fit for KubeRay."""

import re
from typing import Any

import pytest

from prefect_ray_worker.clusters.kuberay.manifest import (
    SharedManifest,
    cluster_name,
    is_shared_name,
    shared_cluster,
)
from prefect_ray_worker.config.kuberay import KubeRay

IMAGE = "registry.example.com:5000/team/ray:2.60.0-py311"
JOB = "prefect-9838ecb1-28dc-4001-9aa4-e48a7876be0c-012345678901"
DNS_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"


def shared(pool: str = "research", pool_id: str = "one", **fields: Any) -> SharedManifest:
    asked = KubeRay(scope="shared", image=IMAGE, **fields)
    return shared_cluster(asked, pool_id=pool_id, pool_name=pool, namespace="ray")


def test_equal_job_variables_give_one_name_and_nothing_differs_from_run_to_run() -> None:
    assert shared().of(3) == shared().of(3)
    metadata = shared().of(3)["metadata"]
    assert re.fullmatch(r"ray-research-[0-9a-f]{10}-3", metadata["name"])
    assert metadata["labels"] | {"prefect-ray-worker/spec": "any"} == {
        "app.kubernetes.io/managed-by": "prefect-ray-worker",
        "prefect.io/work-pool-id": "one",
        "prefect-ray-worker/scope": "shared",
        "prefect-ray-worker/spec": "any",
        "prefect-ray-worker/generation": "3",
    }
    assert metadata["annotations"] == {
        "prefect-ray-worker/idle-seconds": "600",
        "prefect-ray-worker/start-timeout-seconds": "900",
    }


@pytest.mark.parametrize(
    "other",
    [
        {"pool_id": "two"},
        {"head": {"cpus": 2}},
        {"secrets": {"KEY": "name/key"}},
        {"labels": {"team": "a"}},
        {"queue": "gpus"},
        {"idle_seconds": 60},
        {"max_lifetime_seconds": 3600},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_makes_another_cluster_makes_another_name(other: dict[str, Any]) -> None:
    assert shared(**other).prefix != shared().prefix


@pytest.mark.parametrize(
    "other",
    [
        {"access": "proxy"},
        {"address_template": "https://ray.example.com/{name}"},
        {"ready_when": "all"},
        {"idle_seconds": 600},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_how_a_run_reaches_the_cluster_makes_no_other(other: dict[str, Any]) -> None:
    assert shared(**other).prefix == shared().prefix


@pytest.mark.parametrize(
    "pool", ["research", "Ünï / çode", "", "9", "---", "a" * 80, "trains-at-night-in-the-north"]
)
def test_a_name_fits_kuberay_whatever_the_pool_is_called(pool: str) -> None:
    name = shared(pool).name(999_999_999)
    assert re.fullmatch(DNS_1035, name), name
    assert len(name) <= 50, "KubeRay cuts the front off longer names of Secrets"
    assert is_shared_name(name)
    assert shared(pool).generation_of(name) == 999_999_999
    assert shared("other").generation_of(name) is None


def test_the_name_of_a_runs_own_cluster_is_none_of_a_shared_one() -> None:
    assert not is_shared_name(cluster_name(JOB))
