"""What the tests of flows use, for the templates."""

from tests.integration.conftest import pool, prefect_api, prefect_settings

__all__ = ["pool", "prefect_api", "prefect_settings"]
