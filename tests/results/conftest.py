"""A real Prefect server, as for the tests of flows."""

from tests.integration.conftest import prefect_api, prefect_settings

__all__ = ["prefect_api", "prefect_settings"]
