"""What is created for an attempt: its name, its labels and its spec."""

from typing import Any

import pytest

from prefect_ray_worker.clusters.kuberay.manifest import cluster_name, cluster_spec, ray_cluster
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.errors import InvalidConfiguration
from tests.fake_kubernetes import CRD, MISSING_CRD
from tests.fake_kubernetes.schema import Checker, raycluster_schema

IMAGE = "registry.example.com:5000/team/ray:2.60.0-py311"
RUN = "9838ecb1-28dc-4001-9aa4-e48a7876be0c"
JOB = f"prefect-{RUN}-0123456789ab"


def container(spec: dict[str, Any], group: int = -1) -> dict[str, Any]:
    chosen = spec["headGroupSpec"] if group < 0 else spec["workerGroupSpecs"][group]
    return chosen["template"]["spec"]["containers"][0]


def test_the_name_follows_from_the_attempt_and_fits_kuberay() -> None:
    name = cluster_name(JOB)
    assert name == "ray-9838ecb128dc40019aa4e48a7876be0c-0123456789ab"
    assert len(name) <= 50, "KubeRay cuts the front off longer names of Secrets"
    with pytest.raises(ValueError, match="not the job of a flow run"):
        cluster_name("somebody-elses-job")


def test_labels_and_annotations_say_whose_it_is_and_when_it_may_go() -> None:
    asked = KubeRay(
        image=IMAGE, labels={"team": "research"}, queue="gpus", keep_failed_seconds=60,
        max_lifetime_seconds=3600,
    )  # fmt: skip
    metadata = ray_cluster(asked, job_id=JOB, pool_id="pool", namespace="ray")["metadata"]
    assert metadata["namespace"] == "ray"
    assert metadata["labels"] | {"prefect-ray-worker/spec": "any"} == {
        "app.kubernetes.io/managed-by": "prefect-ray-worker",
        "prefect.io/work-pool-id": "pool",
        "prefect.io/flow-run-id": RUN,
        "prefect-ray-worker/scope": "run",
        "prefect-ray-worker/attempt": "0123456789ab",
        "prefect-ray-worker/spec": "any",
        "kueue.x-k8s.io/queue-name": "gpus",
        "team": "research",
    }
    assert metadata["annotations"] == {
        "prefect-ray-worker/keep-failed-seconds": "60",
        "prefect-ray-worker/start-timeout-seconds": "900",
        "prefect-ray-worker/max-lifetime-seconds": "3600",
    }


def test_a_head_alone_gives_its_cpus_to_tasks_and_one_with_workers_does_not() -> None:
    alone = cluster_spec(KubeRay(image=IMAGE))
    assert "num-cpus" not in alone["headGroupSpec"]["rayStartParams"]
    assert "workerGroupSpecs" not in alone
    workers: Any = [{"name": "cpu", "cpus": 2.5, "memory": "8GiB", "gpus": 1, "min": 0, "max": 3}]
    spec = cluster_spec(KubeRay(image=IMAGE, workers=workers))
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"] is True
    assert container(spec, 0)["resources"]["limits"] == {
        "cpu": "2.5", "memory": str(8 * 1024**3), "nvidia.com/gpu": "1",
    }  # fmt: skip


@pytest.mark.skipif(not CRD.exists(), reason=MISSING_CRD)
def test_no_flow_on_the_head_can_read_the_token_of_the_autoscalers_account() -> None:
    """With it, a flow could change the pods of every RayCluster of the namespace."""
    workers: Any = [{"name": "fixed"}, {"name": "cpu", "min": 1, "max": 2}]
    asked = KubeRay(image=IMAGE, workers=workers)
    manifest = ray_cluster(asked, job_id=JOB, pool_id="pool", namespace="ray")
    Checker(raycluster_schema()).checked(manifest, is_strict=True)
    spec = manifest["spec"]
    head = spec["headGroupSpec"]["template"]["spec"]
    assert head["automountServiceAccountToken"] is False
    (account,) = head["volumes"]
    sources = [next(iter(source)) for source in account["projected"]["sources"]]
    assert sources == ["serviceAccountToken", "configMap", "downwardAPI"]
    (mount,) = spec["autoscalerOptions"]["volumeMounts"]
    assert mount["name"] == account["name"]
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    assert "volumeMounts" not in container(spec)


def test_flows_keep_the_account_that_the_pool_gives_them() -> None:
    workers: Any = [{"name": "cpu", "min": 0, "max": 3}]
    spec = cluster_spec(KubeRay(image=IMAGE, workers=workers, service_account="ray"))
    assert "automountServiceAccountToken" not in spec["headGroupSpec"]["template"]["spec"]
    assert "autoscalerOptions" not in spec


def test_every_ray_container_gets_the_image_and_the_secrets_by_reference() -> None:
    workers: Any = [{"name": "cpu"}]
    asked = KubeRay(
        image=IMAGE, workers=workers, secrets={"PREFECT_API_KEY": "api/key"}, service_account="ray"
    )
    spec = cluster_spec(asked)
    for group in (-1, 0):
        assert container(spec, group)["image"] == IMAGE
        assert container(spec, group)["env"] == [
            {
                "name": "PREFECT_API_KEY",
                "valueFrom": {"secretKeyRef": {"name": "api", "key": "key"}},
            }
        ]
    assert spec["headGroupSpec"]["template"]["spec"]["serviceAccountName"] == "ray"
    assert "enableInTreeAutoscaling" not in spec


def test_a_cluster_asks_for_a_token_and_the_tag_names_the_version_of_ray() -> None:
    spec = cluster_spec(KubeRay(image=IMAGE, token_secret="pool-token"))
    assert spec["rayVersion"] == "2.60.0"
    assert spec["authOptions"] == {"mode": "token", "secretName": "pool-token"}


@pytest.mark.parametrize(
    ("image", "version", "said"),
    [("team/ray:latest", None, "ray_version"), (IMAGE, "2.40.0", "2.52")],
)
def test_a_cluster_without_a_token_is_made_only_on_request(
    image: str, version: str | None, said: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=said):
        cluster_spec(KubeRay(image=image, ray_version=version))
    head = {"template": {"spec": {"containers": [{"name": "ray-head"}]}}}
    manifest = {"headGroupSpec": head, "authOptions": {"mode": "disabled"}}
    spec = cluster_spec(KubeRay(image=image, ray_version=version, manifest=manifest))
    assert spec["authOptions"] == {"mode": "disabled"}


def test_a_manifest_is_completed_and_nothing_in_it_is_replaced() -> None:
    head = {
        "name": "ray-head",
        "image": "own:2.55.1",
        "ports": [{"name": "metrics", "containerPort": 8080}],
        "env": [{"name": "PREFECT_API_KEY", "value": "${OTHER}"}],
    }
    manifest = {
        "headGroupSpec": {"template": {"spec": {"containers": [head]}}},
        "workerGroupSpecs": [
            {"groupName": "a", "template": {"spec": {"containers": [{"name": "ray-worker"}]}}}
        ],
    }
    before = repr(manifest)
    asked = KubeRay(image="own:2.55.1", manifest=manifest, secrets={"PREFECT_API_KEY": "api/key"})
    spec = cluster_spec(asked)
    assert repr(manifest) == before, "the job variable itself is left as it is"
    assert container(spec)["env"] == head["env"]
    assert [port["name"] for port in container(spec)["ports"]] == ["metrics", "dashboard"]
    assert container(spec, 0)["image"] == "own:2.55.1"
    assert spec["rayVersion"] == "2.55.1"


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"kind": "RayCluster", "spec": {}}, "below its `spec`"),
        ({"workerGroupSpecs": []}, "no headGroupSpec"),
        ({"headGroupSpec": {"template": {"spec": {}}}}, "without containers"),
        ({"headGroupSpec": {"template": {"spec": {"containers": [{"name": "a"}]}}}}, "no image"),
        (
            {
                "headGroupSpec": {"template": {"spec": {"containers": [{"image": "a:2.60.0"}]}}},
                "workerGroupSpecs": [
                    {"template": {"spec": {"containers": [{"image": "b:2.60.0"}]}}}
                ],
            },
            "different images: a:2.60.0, b:2.60.0",
        ),
    ],
)
def test_a_manifest_that_cannot_work_is_refused_by_name(
    manifest: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=said) as refused:
        cluster_spec(KubeRay(manifest=manifest))
    assert "kuberay.manifest" in str(refused.value)


def test_equal_specs_have_equal_hashes_whatever_the_run() -> None:
    asked = KubeRay(image=IMAGE)
    other = JOB.replace("0123456789ab", "ba9876543210")
    one, two = (
        ray_cluster(asked, job_id=job, pool_id="p", namespace="n")["metadata"]["labels"]
        for job in (JOB, other)
    )
    assert one["prefect-ray-worker/spec"] == two["prefect-ray-worker/spec"]
    assert one["prefect-ray-worker/attempt"] != two["prefect-ray-worker/attempt"]
