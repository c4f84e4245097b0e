"""`SweepTurns`: which worker of a pool deletes a cluster that no run needs. Pure.

One worker is chosen for each cluster, so that they do not all ask and delete at once. A worker
knows only the pool's own place, those of its settings, and those where it has planned a run since
its start: the chosen one may not know the place of the cluster, which then would stay for ever. So
each worker that finds a cluster unneeded in several sweeps in a row deletes it. Deletions are
idempotent.
"""

_PATIENCE = 3


class SweepTurns:
    """Counts in how many sweeps of one place in a row a worker has found clusters unneeded."""

    def __init__(self) -> None:
        self._sweeps = 0
        self._before: dict[str, int] = {}
        self._now: dict[str, int] = {}

    def begin(self) -> None:
        """Begin a sweep of the place."""
        self._sweeps += 1
        self._before, self._now = self._now, {}

    def looks(self, key: str, *, is_mine: bool) -> bool:
        """Return whether to find out in this sweep if a cluster is needed, where that is costly.

        Args:
            key: The cluster.
            is_mine: Whether this worker is the chosen one.
        """
        return is_mine or key in self._before or self._sweeps % _PATIENCE == 0

    def is_due(self, key: str, *, is_mine: bool) -> bool:
        """Note that a cluster is unneeded; return whether this worker deletes it in this sweep.

        Args:
            key: The cluster.
            is_mine: Whether this worker is the chosen one.
        """
        self._now[key] = self._before.get(key, 0) + 1
        return is_mine or self._now[key] >= _PATIENCE
