"""`kubectl`, a client that others wrote, takes the fake Kubernetes for a real one."""

import asyncio
import base64
import json
import shutil
import ssl
from pathlib import Path

import pytest
import trustme

from tests.fake_kubernetes import CRD, MISSING_CRD, FakeKubernetes, a_manifest
from tests.waiting import wait_until

KUBECTL = shutil.which("kubectl")

pytestmark = [
    pytest.mark.skipif(not CRD.exists(), reason=MISSING_CRD),
    pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed"),
]


class Kubectl:
    """Runs `kubectl` with a configuration and a cache of its own."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._options = (f"--kubeconfig={kubeconfig}", f"--cache-dir={folder}/cache", "-n", "ray")

    async def __call__(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code, and what it said."""
        assert KUBECTL is not None
        process = await asyncio.create_subprocess_exec(
            KUBECTL,
            *self._options,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 30)
        return process.returncode or 0, said.decode()


async def test_it_creates_reads_changes_and_deletes(tmp_path: Path) -> None:
    # Over TLS: client-go sends a token over nothing else.
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    data = base64.b64encode(authority.cert_pem.bytes()).decode()
    manifest = tmp_path / "cluster.json"
    manifest.write_text(json.dumps(a_manifest("mine")))
    async with FakeKubernetes(tls=context) as kubernetes:
        trust = {"certificate-authority-data": data}
        path = kubernetes.write_kubeconfig(tmp_path, "admin-token", cluster=trust)
        kubectl = Kubectl(path, tmp_path)
        create = ("create", "-f", str(manifest), "--validate=false")
        assert await kubectl(*create) == (0, "raycluster.ray.io/mine created\n")
        code, said = await kubectl(*create)
        assert (code, "(AlreadyExists)" in said) == (1, True)
        await wait_until(lambda: kubernetes.heads.by_cluster, description="a head")  # type: ignore[attr-defined]
        code, said = await kubectl("get", "raycluster", "mine", "-o", "jsonpath={.status.head}")
        assert json.loads(said)["serviceName"] == "mine-head-svc"
        code, said = await kubectl("logs", "-l", "ray.io/node-type=head")
        assert "Ray runtime started" in said
        assert (await kubectl("annotate", "raycluster", "mine", "a=b"))[0] == 0
        code, said = await kubectl("get", "raycluster", "another")
        assert (code, "(NotFound)" in said) == (1, True)
        delete = ("delete", "raycluster", "mine", "--cascade=foreground", "--wait=false")
        assert await kubectl(*delete) == (0, 'raycluster.ray.io "mine" deleted\n')
        await wait_until(lambda: not kubernetes.clusters(), description="it is gone")
