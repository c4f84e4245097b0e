"""A small Kubernetes API server over real HTTP, with a simulated KubeRay and Rays behind it.

Example:
    ```python
    async with FakeKubernetes() as kubernetes:  # skip without `CRD`
        kubernetes.scripts["slow-one"] = Script(slow=2.0)
        kubernetes.faults.add(Fault("POST", "/rayclusters$", kind=Kind.ACT_THEN_DROP))
        async with KubernetesClient(Kubeconfig.of_block(kubernetes.kubeconfig())) as client:
            await client.create_cluster(a_manifest("slow-one"))
        ...
        kubernetes.heads.by_cluster["slow-one"].jobs  # a FakeRay, or a RealRay
    ```

`scripts.py` lists the troubles. What it does not have: watch, admission webhooks, CEL, nodes.
"""

from tests.fake_kubernetes.heads import FakeHeads, RealHeads
from tests.fake_kubernetes.manifests import a_manifest
from tests.fake_kubernetes.schema import CRD, MISSING_CRD
from tests.fake_kubernetes.scripts import NO_NODE, Script
from tests.fake_kubernetes.server import FakeKubernetes
from tests.fake_ray.faults import Fault, Kind

__all__ = [
    "CRD",
    "MISSING_CRD",
    "NO_NODE",
    "FakeHeads",
    "FakeKubernetes",
    "Fault",
    "Kind",
    "RealHeads",
    "Script",
    "a_manifest",
]
