"""How a run that is to be adopted stands, and what an error of its adoption means. Pure."""

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker.errors import ClusterSourceUnclear, KubernetesError, RayWorkerError
from prefect_ray_worker.prefect_api.answers import is_passing_error
from prefect_ray_worker.prefect_api.flow_runs import type_of_state
from prefect_ray_worker.runs.recovery.labels import is_unfinished, labelled_cluster


def is_over(run: FlowRun) -> bool:
    """Return whether a run has ended."""
    return run.state is not None and run.state.is_final()


def is_cancelled_unsent(run: FlowRun, attempt: str) -> bool:
    """Return whether a run is being cancelled whose attempt no worker has begun to submit.

    A worker labels the run before it submits anything. So there is no job to look for, and the
    configuration, which may be unreadable for ever, is not needed.
    """
    is_begun = is_unfinished(run.labels, attempt) or labelled_cluster(run.labels, attempt)
    return type_of_state(run) == StateType.CANCELLING and not is_begun


def is_passing(exc: Exception) -> bool:
    """Return whether Prefect, or a source of clusters, may answer otherwise when asked again."""
    return isinstance(exc, KubernetesError | ClusterSourceUnclear) or is_passing_error(exc)


def said_by(trouble: Exception) -> str:
    """Return an error in words that the user can place."""
    text = str(trouble)
    known = isinstance(trouble, RayWorkerError | ObjectNotFound)
    return text if known and text else f"{type(trouble).__name__}: {text}"
