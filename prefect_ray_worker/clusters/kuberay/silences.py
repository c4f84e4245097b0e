"""`Silences`: since when a worker gets no answer from the dashboards of shared clusters. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta

# Between two looks that are further apart, for example while Prefect or the worker's own network
# was away, the dashboard may have answered. Another worker's clusters are looked at in each third
# sweep only.
_LONGEST_GAP = timedelta(minutes=15)


class Silences:
    """Remembers the silences of one namespace, by the uid of the cluster."""

    def __init__(self) -> None:
        # When the silence began, and when it was last noticed.
        self._seen: dict[str, tuple[datetime, datetime]] = {}

    def end(self, uid: str) -> None:
        """Note that a dashboard has answered, or that a run uses the cluster."""
        self._seen.pop(uid, None)

    def notice(self, uid: str, now: datetime) -> datetime:
        """Note that a dashboard does not answer; return since when it has not.

        Args:
            uid: The cluster's.
            now: The present.
        """
        began, last = self._seen.get(uid, (now, now))
        if now - last > _LONGEST_GAP:
            began = now
        self._seen[uid] = (began, now)
        return began

    def keep(self, uids: Iterable[str]) -> None:
        """Forget the clusters that are not among these."""
        present = frozenset(uids)
        self._seen = {uid: seen for uid, seen in self._seen.items() if uid in present}
