"""The Kubernetes API over lightkube: one method per request, and what each answer means.

Enters: `Kubeconfig` or nothing, a request. Leaves: a frozen object, or a `KubernetesError`. No
policy. Only a pool that asks for KubeRay imports this folder; it needs the extra `kuberay`.
Start at `client.KubernetesClient`. From outside: `Connection(client.proxy_address(…), gateway=…)`.
"""
