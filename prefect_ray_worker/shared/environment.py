"""The variables by which worker and driver speak to each other. Standard library only."""

from collections.abc import Mapping

PREFECT_VERSION = "PREFECT_RAY_WORKER_PREFECT_VERSION"
"""The version of Prefect that the worker has."""

WARM_SECONDS = "PREFECT_RAY_WORKER_WARM_SECONDS"
"""How long an idle zygote of the driver stays on a node; none stays without it, or with 0."""

ZYGOTE = "PREFECT_RAY_WORKER_ZYGOTE"
"""Fingerprint and raylet of the zygote that an engine has to leave behind."""

WORKER_ID_KEY = "prefect-ray-worker/worker-id"
"""The key of a job's metadata for the worker's id in Prefect, which no label of Prefect's has."""

RUN_ID = "PREFECT__FLOW_RUN_ID"
"""Prefect's variable for the flow run that a process runs."""

WORKER_ID = "PREFECT__WORKER_ID"
"""Prefect's variable for the worker that has submitted it."""

# Prefect's variables for what runs a flow (`_base_attribution_environment`, 3.8.8), and the key of
# the job's metadata that has the same value. All but the last are labels of Prefect's.
_OF_METADATA: "Mapping[str, str]" = {
    "PREFECT__FLOW_ID": "prefect.io/flow-id",
    "PREFECT__FLOW_NAME": "prefect.io/flow-name",
    "PREFECT__DEPLOYMENT_ID": "prefect.io/deployment-id",
    "PREFECT__DEPLOYMENT_NAME": "prefect.io/deployment-name",
    "PREFECT__WORKER_NAME": "prefect.io/worker-name",
    WORKER_ID: WORKER_ID_KEY,
}


def variables_of_run(flow_run_id: str, metadata: "Mapping[str, str]") -> "dict[str, str]":
    """Return Prefect's variables for a run, as far as its job tells them.

    Args:
        flow_run_id: The run.
        metadata: Of the job.
    """
    told = {name: metadata[key] for name, key in _OF_METADATA.items() if key in metadata}
    return {RUN_ID: flow_run_id, **told}
