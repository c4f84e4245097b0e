"""Each trouble of a cluster that is made for a run, in words on the run, within its limit."""

import math
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.shared.ids import is_claim
from tests.fake_kubernetes import NO_NODE, FakeKubernetes, Fault, Kind, Script
from tests.integration.harness import set_timing
from tests.integration.kuberay.stage import KubeRayStage
from tests.integration.stage import HEARTBEAT_SECONDS


def script(**fields: Any) -> Callable[[FakeKubernetes], None]:
    def arrange(kubernetes: FakeKubernetes) -> None:
        kubernetes.scripts.default = Script(**fields)

    return arrange


def without_kuberay(kubernetes: FakeKubernetes) -> None:
    kubernetes.has_kuberay = False


def without_the_right_to_create(kubernetes: FakeKubernetes) -> None:
    kubernetes.worker.take_away("rayclusters", "create")


def without_the_right_to_list_pods(kubernetes: FakeKubernetes) -> None:
    kubernetes.worker.take_away("pods", "list")


def without_the_right_to_use_the_proxy(kubernetes: FakeKubernetes) -> None:
    kubernetes.worker.take_away("services/proxy")


def quota_of(resource: str) -> Callable[[FakeKubernetes], None]:
    def arrange(kubernetes: FakeKubernetes) -> None:
        kubernetes.limit(0, resource=resource)

    return arrange


def namespace_going(kubernetes: FakeKubernetes) -> None:
    kubernetes.store.namespaces["ray"] = "Terminating"


def api_away(kubernetes: FakeKubernetes) -> None:
    kubernetes.faults.add(Fault("*", "/apis/ray.io", kind=Kind.DROP, times=None))


LIMIT: dict[str, Any] = {"start_timeout_seconds": 4}
ENDED: dict[str, tuple[Callable[[FakeKubernetes], None], dict[str, Any], str]] = {
    "CRD absent": (without_kuberay, {}, "^KubeRayMissing: "),
    "RBAC create": (
        without_the_right_to_create,
        {},
        r"^ClusterForbidden: .*must not create rayclusters\.ray\.io",
    ),
    "RBAC pods": (without_the_right_to_list_pods, {}, "^ClusterForbidden: .*must not list pods"),
    "RBAC proxy": (
        without_the_right_to_use_the_proxy,
        {},
        "^ClusterForbidden: .*services/proxy",
    ),
    "cluster quota": (quota_of("rayclusters"), LIMIT, "^ClusterQuota: .*exceeded quota"),
    "pod quota": (quota_of("pods"), LIMIT, "^ClusterQuota: .*exceeded quota"),
    "service quota": (quota_of("services"), LIMIT, "^ClusterQuota: .*FailedToCreateService"),
    "no such namespace": (
        lambda _: None,
        {"namespace": "elsewhere"},
        "^ClusterNamespaceGone: .*'elsewhere'",
    ),
    "namespace going": (namespace_going, {}, "^ClusterNamespaceGone: .*being deleted"),
    "unknown field": (
        lambda _: None,
        {
            "image": None,
            "manifest": {
                "headGroupSpec": {"template": {"spec": {"containers": [{"image": "a:2.60.0"}]}}},
                "colour": "red",
            },
        },
        "^ClusterSpecInvalid: .*colour",
    ),
    "manifest that makes no cluster": (
        lambda _: None,
        {"image": None, "manifest": {"workerGroupSpecs": []}},
        "InvalidConfiguration: job variable 'kuberay.manifest' has no headGroupSpec",
    ),
    "refused by the operator": (
        script(refused="headGroupSpec should have at least one container"),
        {},
        "^ClusterSpecInvalid: .*at least one container",
    ),
    "operator absent": (script(ignored=True), LIMIT, "^OperatorSilent: "),
    "unschedulable": (
        script(unschedulable=NO_NODE),
        LIMIT,
        "^ClusterUnschedulable: .*3 Insufficient cpu",
    ),
    "image": (script(image="manifest unknown"), {}, "^ClusterImage: .*manifest unknown"),
    "secret missing": (
        lambda _: None,
        {"secrets": {"PREFECT_API_KEY": "none/key"}},
        '^ClusterSpecInvalid: .*secret "none" not found',
    ),
    "crash loop": (
        script(crashes=math.inf),
        {},
        "(?s)^HeadCrashLoop: .*crashed \\d times .*No module named 'ray'",
    ),
    "out of memory": (
        script(crashes=math.inf, out_of_memory=True),
        {},
        "^HeadCrashLoop: .*OOMKilled, exit code 137",
    ),
    "API away": (api_away, LIMIT, "^KubernetesUnreachable: "),
}

# Another form of one that stands above.
ANOTHER = ("RBAC proxy", "cluster quota", "service quota", "out of memory", "namespace going")
CASES = [
    pytest.param(*case, id=name, marks=[pytest.mark.extra] if name in ANOTHER else [])
    for name, case in ENDED.items()
]


@pytest.mark.parametrize(("arrange", "kuberay", "said"), CASES)
async def test_a_cluster_that_does_not_start_crashes_its_run_and_goes(
    stage: KubeRayStage,
    arrange: Callable[[FakeKubernetes], None],
    kuberay: dict[str, Any],
    said: str,
) -> None:
    arrange(stage.kubernetes)
    async with stage.pool.working():
        run_id = await stage.start(kuberay=kuberay)
        await stage.ends(run_id, StateType.CRASHED, said)
        stage.kubernetes.faults.clear()
        await stage.is_gone(run_id)


async def test_a_run_waits_in_line_for_its_quota(stage: KubeRayStage) -> None:
    quota = stage.kubernetes.limit(0)
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "waits for its quota")
        quota.hard = 1
        _, job = await stage.job_of(run_id)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)


@pytest.mark.extra
async def test_the_time_in_line_counts_from_the_claim(stage: KubeRayStage) -> None:
    """An heir waited the whole time anew, and so did its heir."""
    stage.kubernetes.limit(0)
    async with stage.pool.working():
        run_id = await stage.start(kuberay={"start_timeout_seconds": 8})
        await stage.pool.wait_for_log(run_id, "waits for its quota")
        await anyio.sleep(4)
    async with stage.pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        began = time.monotonic()
        await stage.ends(run_id, StateType.CRASHED, "^ClusterQuota: ")
        claimed = [s for s in await stage.pool.client.read_flow_run_states(run_id) if is_claim(s)]
        assert len(claimed) == 1
        assert time.monotonic() - began < 8


async def test_a_head_whose_agent_comes_late_takes_its_job(
    stage: KubeRayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dashboard answered, the job was submitted, and nobody took it: the run crashed."""
    set_timing(monkeypatch, submit_patience=1.0)
    stage.heads.without_agent = True
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "No available agent")
        name = await stage.name_of(run_id)
        await anyio.sleep(3)
        assert not stage.heads.by_cluster[name].jobs
        stage.heads.by_cluster[name].has_agent = True
        _, job = await stage.job_of(run_id)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)


async def test_a_cluster_that_no_node_takes_waits_for_one(stage: KubeRayStage) -> None:
    stage.kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "the head waits for a node")
        waits.unschedulable = None
        _, job = await stage.job_of(run_id)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)


@pytest.mark.parametrize(
    "kind", [Kind.ACT_THEN_DROP, pytest.param(Kind.DROP, marks=pytest.mark.extra)]
)
async def test_a_lost_answer_to_the_creation_makes_one_cluster(
    stage: KubeRayStage, kind: Kind
) -> None:
    stage.kubernetes.faults.add(Fault("POST", "/rayclusters$", kind=kind))
    async with stage.pool.working():
        run_id = await stage.start()
        _, job = await stage.job_of(run_id)
        assert len(stage.names_of(run_id)) == 1
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)


async def test_a_run_goes_on_while_the_kubernetes_api_is_away(stage: KubeRayStage) -> None:
    """Nothing is decided: neither Ray, which is behind it, nor Kubernetes is asked for long."""
    async with stage.pool.working():
        run_id, _, job = await stage.running()
        await stage.kubernetes.stop_listening()
        await stage.pool.wait_for_log(run_id, "does not answer")
        assert await stage.pool.state(run_id) == StateType.RUNNING
        await stage.kubernetes.listen_again()
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)
