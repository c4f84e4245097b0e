"""Where a run's cluster comes from, and the open clients and pollers of those in use.

Enters: a configuration. Leaves: a `Cluster`, and an `OpenCluster` with its observations of jobs.
Never treats an unreachable cluster as a dead one; `runs/` compares `ClusterRef`s, not addresses.
"""
