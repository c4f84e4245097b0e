"""Flows without a deployment: `ray_job` sends a flow from this process to a work pool's cluster.

A caller is no worker. It creates the flow run and follows it; the pool's workers do the rest.
"""
