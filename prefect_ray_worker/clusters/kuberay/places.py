"""`SweptPlaces`: where a worker sweeps RayClusters, and how it reaches each of these places."""

import logging
from collections import defaultdict
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from prefect_ray_worker.clusters.turns import SweepTurns
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.errors import KubernetesForbidden
from prefect_ray_worker.kubernetes_api.client import KubernetesClient

_log = logging.getLogger("prefect.workers.ray.kuberay")


class KubernetesPlace(NamedTuple):
    """A namespace of a Kubernetes. It stays the same when the credentials are renewed.

    Attributes:
        home: The Kubernetes; see `Access`.
        server: Address of its API server: several can have one authority.
        namespace: The namespace.
    """

    home: str
    server: str
    namespace: str

    @classmethod
    def of(cls, client: KubernetesClient, namespace: str) -> Self:
        """Return the place that a client reaches."""
        return cls(client.access.home, client.access.server, namespace)


@dataclass(frozen=True)
class Way:
    """How a worker reaches a place.

    Attributes:
        client: With the credentials to use.
        asked: How the dashboards of its clusters are reached.
    """

    client: KubernetesClient
    asked: KubeRay


class SweptPlaces:
    """Remembers the places of one worker. The last way to each of them counts, the pool's first."""

    def __init__(self) -> None:
        # Where runs have had clusters, and the pool's own place.
        self._used: dict[KubernetesPlace, Way] = {}
        # Those of the worker's setting: earlier workers may have left clusters there.
        self._by_setting: dict[KubernetesPlace, Way] = {}
        self._refused: set[KubernetesPlace] = set()
        self._turns: defaultdict[KubernetesPlace, SweepTurns] = defaultdict(SweepTurns)

    def use(self, client: KubernetesClient, namespace: str, asked: KubeRay) -> None:
        """Sweep a namespace in which runs have clusters."""
        self._used[KubernetesPlace.of(client, namespace)] = Way(client, asked)

    def name(self, client: KubernetesClient, namespaces: Iterable[str], asked: KubeRay) -> None:
        """Sweep namespaces that the worker's setting names."""
        for namespace in namespaces:
            self._by_setting[KubernetesPlace.of(client, namespace)] = Way(client, asked)

    def renew(self, before: KubernetesClient, client: KubernetesClient) -> None:
        """Use a client with renewed credentials instead of the former one."""
        for ways in (self._used, self._by_setting):
            for place, way in ways.items():
                if way.client is before:
                    ways[place] = replace(way, client=client)

    def all(self) -> dict[KubernetesPlace, Way]:
        """Return the places as they are now.

        In those that the setting names, a run does not choose how dashboards are reached: the
        sweep sends the tokens of all shared clusters there.
        """
        ways = {**self._by_setting, **self._used}
        for place, way in self._by_setting.items():
            ways[place] = replace(ways[place], asked=way.asked)
        return ways

    def turns(self, place: KubernetesPlace) -> SweepTurns:
        """Return what counts the sweeps of a place."""
        return self._turns[place]

    @contextmanager
    def unless_refused(self, place: KubernetesPlace) -> Generator[None, None, None]:
        """Say once that the worker must not look into a namespace that only its setting names."""
        try:
            yield
        except KubernetesForbidden as exc:
            if place in self._used:
                raise
            if place not in self._refused:
                self._refused.add(place)
                _log.warning(
                    "The clusters in namespace %s, one of those in "
                    "PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES, are not swept: %s",
                    place.namespace,
                    exc,
                )
