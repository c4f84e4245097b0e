"""`prefect-ray-worker doctor` on a work pool whose clusters KubeRay makes."""

from prefect_ray_worker import RayWorker
from prefect_ray_worker.doctor.examine import examine
from prefect_ray_worker.doctor.report import CheckSubject, Grade, KubeRaySubject
from tests.fake_kubernetes import FakeKubernetes
from tests.integration.harness import new_pool


async def test_pool_of_kuberay_is_examined_without_a_cluster(
    kubernetes: FakeKubernetes, prefect_settings: None
) -> None:
    template = RayWorker.get_default_base_job_template()
    template["variables"]["properties"]["kuberay"]["default"] = {
        "image": "rayproject/ray:2.60.0-py311",
        "kubeconfig": {"config": kubernetes.kubeconfig(), "context_name": "fake"},
    }
    async with new_pool({}, template) as pool:
        checks = [check async for check in examine(pool.name, {}, wait=5)]
        # A deployment's own field goes over the pool's.
        wrong = [
            check async for check in examine(pool.name, {"kuberay": {"namespace": "no"}}, wait=5)
        ]
    assert [check.subject for check in checks] == [CheckSubject.TARGET, *KubeRaySubject]
    assert {check.grade for check in checks} == {Grade.OK}, checks
    assert checks[0].says == f"a cluster that KubeRay makes for a run of work pool {pool.name!r}."
    assert wrong[-1].grade is Grade.FAILED
    assert 'namespaces "no" not found' in str(wrong[-1])
