"""Names of the variables by which worker and driver speak to each other. Standard library only."""

PREFECT_VERSION = "PREFECT_RAY_WORKER_PREFECT_VERSION"
"""The version of Prefect that the worker has."""

WARM_SECONDS = "PREFECT_RAY_WORKER_WARM_SECONDS"
"""How long an idle zygote of the driver stays on a node; none stays without it, or with 0."""

ZYGOTE = "PREFECT_RAY_WORKER_ZYGOTE"
"""Fingerprint and raylet of the zygote that an engine has to leave behind."""
