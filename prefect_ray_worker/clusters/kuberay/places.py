"""`SweptPlaces`: where a worker sweeps RayClusters, and how it reaches each of these places."""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from prefect_ray_worker.clusters.kuberay.silences import Silences
from prefect_ray_worker.clusters.turns import SweepTurns
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.errors import (
    CredentialsUnreadable,
    InvalidConfiguration,
    KubernetesError,
    KubernetesForbidden,
    KubernetesUnauthorized,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.settings import worker_settings

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
    """Remembers the places of one worker, and the ways to each of them.

    Those of the worker's setting come first, then the pool's, then those of runs, the last first.
    """

    def __init__(self) -> None:
        # Where runs have had clusters, and the pool's own place.
        self._used: dict[KubernetesPlace, list[Way]] = {}
        # Those of the worker's setting: earlier workers may have left clusters there.
        self._by_setting: dict[KubernetesPlace, Way] = {}
        self._refused: set[KubernetesPlace] = set()
        self._turns: defaultdict[KubernetesPlace, SweepTurns] = defaultdict(SweepTurns)
        self._silences: defaultdict[KubernetesPlace, Silences] = defaultdict(Silences)

    def use(self, client: KubernetesClient, namespace: str, asked: KubeRay) -> None:
        """Sweep a namespace in which runs have clusters."""
        ways = self._used.setdefault(KubernetesPlace.of(client, namespace), [])
        ways[:] = [Way(client, asked), *(way for way in ways if way.client is not client)]

    def name(self, client: KubernetesClient, namespaces: Iterable[str], asked: KubeRay) -> None:
        """Sweep namespaces that the worker's setting names."""
        for namespace in namespaces:
            self._by_setting[KubernetesPlace.of(client, namespace)] = Way(client, asked)

    def renew(self, before: KubernetesClient, client: KubernetesClient) -> None:
        """Use a client with renewed credentials instead of the former one."""
        for place, way in self._by_setting.items():
            self._by_setting[place] = _renewed(way, before, client)
        for ways in self._used.values():
            ways[:] = [_renewed(way, before, client) for way in ways]

    def all(self) -> list[KubernetesPlace]:
        """Return the places as they are now."""
        return list({**self._by_setting, **self._used})

    def ways(self, place: KubernetesPlace) -> list[Way]:
        """Return the ways to a place in the order in which to try them.

        In a place that the setting names, a run does not choose how dashboards are reached: the
        sweep sends the tokens of all shared clusters there.
        """
        named, used = self._by_setting.get(place), self._used.get(place, [])
        if named is None:
            return list(used)
        others = [way for way in used if way.client is not named.client]
        return [named, *(replace(way, asked=named.asked) for way in others)]

    async def reach(self, place: KubernetesPlace, act: Callable[[Way], Awaitable[None]]) -> None:
        """Act in a place by the first way whose credentials are not refused.

        A run can name an expired token for a namespace in which others have clusters.

        Raises:
            KubernetesError: All are refused, or something else is wrong.
        """
        refusal: KubernetesError | None = None
        refused: list[KubernetesClient] = []
        for way in self.ways(place):
            try:
                await act(way)
            except (KubernetesForbidden, KubernetesUnauthorized) as exc:
                refusal = refusal or exc
                refused.append(way.client)
            except CredentialsUnreadable as exc:
                refusal = refusal or exc  # and not forgotten: it passes
            else:
                # A run that still has them makes them known again.
                used = self._used.get(place, [])
                used[:] = [way for way in used if way.client not in refused]
                return
        if refusal is not None:
            raise refusal

    def turns(self, place: KubernetesPlace) -> SweepTurns:
        """Return what counts the sweeps of a place."""
        return self._turns[place]

    def silences(self, place: KubernetesPlace) -> Silences:
        """Return since when which dashboards of a place have not answered."""
        return self._silences[place]

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


def _renewed(way: Way, before: KubernetesClient, client: KubernetesClient) -> Way:
    return replace(way, client=client) if way.client is before else way


def allowed_namespace(namespace: str) -> str:
    """Return the namespace if this worker makes clusters in it.

    Raises:
        InvalidConfiguration: The setting `kuberay_namespaces` does not name it.
    """
    allowed = worker_settings().kuberay_namespaces
    if allowed and namespace not in allowed:
        raise InvalidConfiguration(
            f"job variable 'kuberay.namespace' is {namespace!r}, and this worker makes clusters in "
            f"{', '.join(allowed)} only (PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES)."
        )
    return namespace
