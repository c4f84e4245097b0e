"""`SlotLeases`: a renewal is never shorter than what the deployment gives."""

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker.prefect_api.slot_leases import SlotLeases

LEASE, DEPLOYMENT = uuid4(), uuid4()
NO_OPTIONS, DELETED = "no options", "deleted"


class Prefect:
    """Has one deployment, and notes what it is asked."""

    def __init__(self, grace: int | str | None) -> None:
        self.grace = grace
        self.renewed: list[float] = []
        self.reads = 0

    async def renew_concurrency_lease(self, lease_id: UUID, seconds: float) -> None:
        assert lease_id == LEASE
        self.renewed.append(seconds)

    async def read_deployment(self, deployment_id: UUID) -> Any:
        assert deployment_id == DEPLOYMENT
        self.reads += 1
        if self.grace == DELETED:
            raise ObjectNotFound(Exception("404"))
        options = SimpleNamespace(grace_period_seconds=self.grace)
        return SimpleNamespace(concurrency_options=None if self.grace == NO_OPTIONS else options)


@pytest.mark.parametrize(
    ("grace", "seconds"),
    [(3600, 3600.0), (60, 300.0), (None, 300.0), (NO_OPTIONS, 300.0), (DELETED, 300.0)],
)
async def test_a_renewal_is_never_shorter_than_the_deployments_grace_period(
    grace: int | str | None, seconds: float
) -> None:
    """A lease of an hour ended 300 s after its worker had gone, and a second run began."""
    prefect = Prefect(grace)
    leases = SlotLeases(cast("PrefectClient", prefect))
    for _ in range(3):
        assert await leases.renew(LEASE, DEPLOYMENT)
    assert prefect.renewed == [seconds] * 3
    assert prefect.reads == 1, "read once a minute at most"
