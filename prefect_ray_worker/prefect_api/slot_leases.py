"""`SlotLeases`: renews the leases of slots of deployments' concurrency limits."""

from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

# What flow engines ask for (3.8.8). Long enough for another worker to take over from this one.
_LEASE_SECONDS = 300.0
# Runs of one deployment wait together, and renew every ten seconds.
_FRESH_SECONDS = 60.0


class SlotLeases:
    """Renews leases, never for less than their deployment gives.

    A renewal replaces the length of a lease (Prefect 3.8.8). The length that the deployment sets is
    that of the longest gap between two workers, so it has to apply to renewals, too. A client
    cannot see the one that the server sets.

    Args:
        client: An open Prefect client.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._read: dict[UUID, tuple[float, float]] = {}

    async def renew(self, lease_id: UUID, deployment_id: UUID | None) -> bool:
        """Renew a lease; return whether the server has it.

        Args:
            lease_id: The lease.
            deployment_id: The deployment that has the limit; None if it is not known.
        """
        seconds = _LEASE_SECONDS
        if deployment_id is not None:
            seconds = max(seconds, await self._given_by(deployment_id))
        try:
            await self._client.renew_concurrency_lease(lease_id, seconds)
        except PrefectHTTPStatusError as exc:
            if exc.response.status_code == int(httpx.codes.GONE):
                return False
            raise
        return True

    async def _given_by(self, deployment_id: UUID) -> float:
        """Return how many seconds the deployment gives a lease; 0 if it leaves that to others."""
        known, now = self._read.get(deployment_id), anyio.current_time()
        if known is not None and now - known[0] < _FRESH_SECONDS:
            return known[1]
        try:
            options = (await self._client.read_deployment(deployment_id)).concurrency_options
        except ObjectNotFound:
            options = None  # it was deleted meanwhile
        seconds = float((options.grace_period_seconds if options else None) or 0)
        self._read[deployment_id] = now, seconds
        return seconds
