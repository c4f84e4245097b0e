"""The tour's stage: one Prefect server, one Ray and a work pool for the flows of this folder."""

from pathlib import Path

import pytest

from tests.integration.harness import Pool


@pytest.fixture
def pool(pool: Pool) -> Pool:
    pool.flows = Path(__file__).parent
    return pool
