"""A real Prefect server that serves its UI, and a browser."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.harness import settings_of
from tests.ports import free_port
from tests.prefect_server import PrefectServer, prefect_server
from tests.ui.browser import Page, browser, page


@pytest.fixture(scope="session")
def ui_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    if browser() is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    extra = {"PREFECT_SERVER_UI_ENABLED": "true", "PREFECT_SERVER_UI_API_URL": url}
    with prefect_server(tmp_path_factory.mktemp("ui-server"), extra, port=port) as server:
        yield server


@pytest.fixture
def prefect_settings(ui_server: PrefectServer, tmp_path: Path) -> Iterator[None]:
    with settings_of(
        ui_server.api_url,
        tmp_path / "home",
        PREFECT_WORKER_QUERY_SECONDS="1",
        PREFECT_LOGGING_TO_API_BATCH_INTERVAL="0.2",
    ):
        yield


@pytest.fixture
def base(ui_server: PrefectServer) -> str:
    """The address of the UI."""
    return ui_server.api_url.removesuffix("/api")


@pytest.fixture
async def tab(ui_server: PrefectServer, tmp_path: Path) -> AsyncIterator[Page]:
    async with page(tmp_path / "profile") as tab:
        yield tab
