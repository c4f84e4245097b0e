"""Runs that get a RayCluster of their own, on a fake Kubernetes."""
