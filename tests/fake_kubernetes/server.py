"""`FakeKubernetes`: a small API server over real HTTP, with KubeRay's operator simulated in it."""

import json
import ssl
import uuid
from pathlib import Path
from typing import Any, Self

import yaml
from aiohttp import web

from tests.fake_kubernetes import rights, schema, statuses
from tests.fake_kubernetes.endpoints import Endpoints
from tests.fake_kubernetes.heads import FakeHeads, Heads
from tests.fake_kubernetes.kubelet import Kubelet
from tests.fake_kubernetes.operator import Operator
from tests.fake_kubernetes.proxy import ServiceProxy
from tests.fake_kubernetes.rights import User
from tests.fake_kubernetes.rounds import Rounds
from tests.fake_kubernetes.scripts import Scripts
from tests.fake_kubernetes.store import Quota, Store
from tests.fake_ray.faults import Faults, Handler
from tests.fake_ray.server import RequestLog
from tests.ports import free_port


class FakeKubernetes:
    """A Kubernetes cluster with KubeRay on a free loopback port.

    Args:
        heads: What starts a Ray for each head pod: `FakeHeads()` (quick, the default), or
            `RealHeads()`, each a real `ray start --head`.
        tls: Certificates to serve https with; None for http.
        left_out: Fields that the custom resource definition lacks, such as `spec.authOptions`, as
            in an older KubeRay.
        has_kuberay: False for a cluster without KubeRay.
        checks_fields: False to take any RayCluster: the definition is not part of the repository.

    Attributes:
        store: The objects, namespaces and quotas; a namespace `ray` is there.
        scripts: What goes wrong with which cluster: `scripts["ray-…"] = Script(crashes=2)`.
        users: By bearer token. `worker` is the one whose token is `worker-token`.
        faults: What goes wrong between a client and the API server, as with the fake Ray. A fault
            on a path with `/proxy/` strikes between the client and Ray.
        requests: What was asked, the requests through the proxy included.
        operator: The simulated KubeRay; `kubelet` runs the pods.
    """

    def __init__(
        self,
        *,
        heads: Heads | None = None,
        tls: ssl.SSLContext | None = None,
        left_out: tuple[str, ...] = (),
        has_kuberay: bool = True,
        checks_fields: bool = True,
    ) -> None:
        document = schema.raycluster_schema() if checks_fields else schema.ANY_SPEC
        for field in left_out:
            document = schema.without(document, field)
        self.store = Store()
        self.scripts = Scripts()
        self.faults = Faults()
        self.requests = RequestLog()
        self.worker = User("system:serviceaccount:ray:worker", rights.of_a_worker())
        administrator = User("administrator", rights.of_an_administrator())
        self.users: dict[str, User] = {"worker-token": self.worker, "admin-token": administrator}
        self.has_kuberay = has_kuberay
        self.heads = heads if heads is not None else FakeHeads()
        self.kubelet = Kubelet(self.store, self.scripts, self.heads)
        self.operator = Operator(self.store, self.scripts)
        self._proxy = ServiceProxy(self.store, self.kubelet.address_of)
        self._endpoints = Endpoints(self, schema.Checker(document), self._proxy)
        self._rounds = Rounds(self.store.collect, self.operator.reconcile_all, self.kubelet.run_all)
        self._tls = tls
        self._port = free_port()
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.listen_again()
        await self._rounds.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.faults.release()
        await self._rounds.stop()
        await self.kubelet.stop()
        await self.stop_listening()
        await self._proxy.close()

    async def stop_listening(self) -> None:
        """Become unreachable; the operator and the clusters live on."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def listen_again(self) -> None:
        """Be reachable again, on the same port."""
        app = web.Application(middlewares=[self._middleware], client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._endpoints.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self._port, ssl_context=self._tls, reuse_address=True
        )
        await site.start()

    def kubeconfig(self, token: str = "worker-token", **more: Any) -> dict[str, Any]:
        """Return a kubeconfig for a user.

        Args:
            token: The user's bearer token.
            **more: Replaces the user's entry, for example `user={"tokenFile": "…"}`, or adds to
                the cluster's: `cluster={"certificate-authority-data": "…"}`.
        """
        context = {"cluster": "fake", "user": "me", "namespace": "ray"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": context}],
            "clusters": [
                {"name": "fake", "cluster": {"server": self.address, **more.get("cluster", {})}}
            ],
            "users": [{"name": "me", "user": more.get("user", {"token": token})}],
        }

    def write_kubeconfig(self, folder: Path, token: str = "worker-token", **more: Any) -> Path:
        """Write a kubeconfig file, for the variable `KUBECONFIG`, and return its path."""
        path = folder / f"kubeconfig-{uuid.uuid4().hex[:6]}.yaml"
        path.write_text(yaml.safe_dump(self.kubeconfig(token, **more)))
        return path

    def limit(self, hard: int, *, resource: str = "rayclusters", namespace: str = "ray") -> Quota:
        """Set a ResourceQuota on the number of objects, and return it; change its `hard`."""
        quota = Quota(f"cap-{resource}", resource, hard)
        self.store.quotas.setdefault(namespace, []).append(quota)
        return quota

    def clusters(self, namespace: str = "ray") -> list[str]:
        """Return the names of the RayClusters, those that are being deleted included."""
        return [d["metadata"]["name"] for d in self.store.all("rayclusters", namespace)]

    @property
    def _middleware(self) -> Any:
        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            with self.requests.answering(request):
                return await self.faults.handle(request, _explained(handler))

        return around


def _explained(handler: Handler) -> Handler:
    """Turn a refusal into the API server's answer."""

    async def explained(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except statuses.Refusal as refusal:
            text = json.dumps(refusal.body)
            return web.Response(status=refusal.status, text=text, content_type="application/json")

    return explained
