"""Ray clusters that the worker makes on Kubernetes through KubeRay, and deletes after use.

Enters: `KubeRay`, the job variable, and the attempt that needs a cluster. Leaves: a `Cluster` that
takes jobs, or `ClusterFailed` with the reason. Must not leak pods, namespaces or conditions.
Pure: `manifest`, `reading`, `orphans`. Imported only for a pool that asks for KubeRay.
"""
