"""Send the events of clusters that a worker makes, and count them in the metrics.

An event's id is derived from the cluster and what happened to it, so every worker computes the same
id, and the Prefect server keeps each event once. For automations, the server forgets ids after 5
minutes (3.8.8): where another worker may have sent an event, Prefect is asked before.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from uuid import UUID, uuid5

from prefect.client.orchestration import PrefectClient
from prefect.events import Event, RelatedResource, emit_event

from prefect_ray_worker import metrics
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.shared.ids import ClusterRef

PREFIX = "prefect.ray.cluster"
# A random UUID. Never change it: event ids are derived from it.
_NAMESPACE = UUID("0b1c6f0e-5a8b-4d0c-9c1d-52d2f7f4a6e3")
# As long as a Prefect server keeps events by default (3.8.8).
_LOOK_BACK = timedelta(days=7)
# Ids that this process has sent. More would be those of clusters that are long gone.
_MOST_REMEMBERED = 10_000

_log = logging.getLogger("prefect.workers.ray.events")


class ClusterHappening(Enum):
    """What can happen to a cluster that a worker makes.

    Attributes:
        meaning: One sentence for the documentation.
    """

    REQUESTED = ("requested", "A run needs the cluster, and a worker begins to create it.")
    CREATED = ("created", "The cluster exists. Its pods or processes have not started yet.")
    JOINED = ("joined", "A run uses an existing cluster. Once for each attempt.")
    READY = ("ready", "The cluster accepts jobs.")
    FAILED = (
        "failed",
        "The cluster cannot be created, or did not accept jobs in time. The run is Crashed.",
    )
    DELETING = ("deleting", "The worker has asked for the deletion of the cluster.")
    GONE = ("gone", "The cluster no longer exists. Noticed about once a minute.")
    STUCK = (
        "stuck",
        "The deletion has not ended after five minutes; the message says what delays it.",
    )

    def __init__(self, label: str, meaning: str) -> None:
        self.label = label
        self.meaning = meaning

    @property
    def event(self) -> str:
        """The event's name."""
        return f"{PREFIX}.{self.label}"


class ClusterLabel(Enum):
    """The labels of a cluster's events, besides `prefect.resource.id` and `.name`.

    Attributes:
        meaning: Description for the documentation.
    """

    SOURCE = ("prefect.ray.cluster-source", "The source of the cluster, such as `kuberay`.")
    CLUSTER = (
        "prefect.ray.cluster",
        "The cluster's unique name, such as `kuberay:ray/ray-0123`. It is the same on all "
        "events of a cluster, including `requested`.",
    )
    DIAGNOSIS = (
        "prefect.ray.diagnosis",
        "Why the cluster failed: a [category](diagnosis.md). Only on `failed`.",
    )

    def __init__(self, label: str, meaning: str) -> None:
        self.label = label
        self.meaning = meaning


def cluster_resource_id(ref: ClusterRef) -> str:
    """Return a cluster's resource id for events.

    Args:
        ref: The cluster. Before it exists it has no uid; one that follows from its name stands in.
    """
    return f"{PREFIX}.{ref.uid or uuid5(_NAMESPACE, str(ref.planned))}"


def cluster_event_id(ref: ClusterRef, happening: ClusterHappening, occasion: str = "") -> UUID:
    """Return the id of an event, which is the same for every worker.

    Args:
        ref: The cluster.
        happening: What happened to it.
        occasion: Tells apart what can happen to a cluster several times: the job that joins it.
    """
    return uuid5(_NAMESPACE, f"{cluster_resource_id(ref)} {happening.label} {occasion}")


class ClusterEvents:
    """Sends what happens to clusters, each event once, and counts it in the metrics.

    Never raises: a missing event must not fail a run.

    Args:
        client: Returns Prefect's client, to ask for the events that it has. None: it is not asked.
        around: Returns what every event is related to: the work pool and the worker.
    """

    def __init__(
        self,
        client: Callable[[], PrefectClient] | None = None,
        around: Callable[[], Sequence[RelatedResource]] = tuple,
    ) -> None:
        self._client = client
        self._around = around
        # The last event of each cluster, and what was sent or found: both in order of their age.
        self._last: dict[ClusterRef, Event] = {}
        self._told: dict[UUID, None] = {}

    async def tell(
        self,
        happening: ClusterHappening,
        ref: ClusterRef,
        *,
        related: Sequence[RelatedResource] | None = None,
        run_id: UUID | None = None,
        occasion: str = "",
        category: str | None = None,
        message: str = "",
        occurred: datetime | None = None,
        may_be_told: bool = False,
    ) -> bool:
        """Send an event unless this process, or Prefect, has it.

        Args:
            happening: What happened.
            ref: The cluster it happened to.
            related: What the event is related to. None: what `around` says, and the run.
            run_id: The flow run that the cluster was made for, if `related` does not name it.
            occasion: See `cluster_event_id`.
            category: Why the cluster failed.
            message: Explanation to include in the payload.
            occurred: When it happened; by default now.
            may_be_told: Whether another worker may have sent it, so that Prefect is asked.

        Returns:
            Whether it is news.
        """
        id_ = cluster_event_id(ref, happening, occasion)
        if id_ in self._told:
            return False
        self._remember(id_)
        if may_be_told and await self._has(ref, id_):
            return False
        if not may_be_told:
            _count(happening, ref, category)
        try:
            sent = emit_event(
                event=happening.event,
                resource=_resource(ref, category),
                occurred=occurred or datetime.now(UTC),
                related=list(related) if related is not None else self._related_to(run_id),
                payload={"message": message} if message else None,
                id=id_,
                follows=self._last.get(ref.planned),
            )
        except Exception as exc:  # noqa: BLE001 (see above)
            _log.warning("The event %s was not sent: %s", happening.event, exc)
            return True
        if happening is ClusterHappening.GONE:
            self._last.pop(ref.planned, None)
        elif sent is not None:
            self._last[ref.planned] = sent
        return True

    async def _has(self, ref: ClusterRef, id_: UUID) -> bool:
        if self._client is None:
            return False
        resource_id, since = cluster_resource_id(ref), datetime.now(UTC) - _LOOK_BACK
        try:
            found = await FlowRuns(self._client()).events_of(resource_id, since=since)
        except Exception as exc:  # noqa: BLE001 (see above)
            _log.debug("Cannot read the events of %s: %s", ref, exc)
            return False
        return any(event.id == id_ for event in found)

    def _remember(self, id_: UUID) -> None:
        self._told[id_] = None
        if len(self._told) > _MOST_REMEMBERED:
            del self._told[next(iter(self._told))]
        if len(self._last) > _MOST_REMEMBERED:
            del self._last[next(iter(self._last))]

    def _related_to(self, run_id: UUID | None) -> list[RelatedResource]:
        related = list(self._around())
        if run_id is not None:
            related.append(
                RelatedResource(
                    {
                        "prefect.resource.id": f"prefect.flow-run.{run_id}",
                        "prefect.resource.role": "flow-run",
                    }
                )
            )
        return related


def _count(happening: ClusterHappening, ref: ClusterRef, category: str | None) -> None:
    match happening:
        case ClusterHappening.CREATED:
            metrics.CLUSTERS_CREATED.labels(ref.kind).inc()
        case ClusterHappening.FAILED:
            metrics.CLUSTERS_FAILED.labels(ref.kind, category or "none").inc()
        case ClusterHappening.DELETING:
            metrics.CLUSTERS_DELETED.labels(ref.kind).inc()
        case _:
            pass


def _resource(ref: ClusterRef, category: str | None) -> dict[str, str]:
    labels = {
        "prefect.resource.id": cluster_resource_id(ref),
        "prefect.resource.name": ref.planned.name.rpartition("/")[2],
        ClusterLabel.SOURCE.label: ref.kind,
        ClusterLabel.CLUSTER.label: str(ref.planned),
    }
    return labels if category is None else {**labels, ClusterLabel.DIAGNOSIS.label: category}
