"""A real Prefect server that serves its UI, and a browser."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.prefect_server import PrefectServer, prefect_server
from tests.ui.browser import Page, browser, page


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The server of these tests, in place of the shared one."""
    if browser() is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    extra = {"PREFECT_SERVER_UI_ENABLED": "true", "PREFECT_SERVER_UI_API_URL": url}
    with prefect_server(tmp_path_factory.mktemp("ui-server"), extra, port=port) as server:
        yield server


@pytest.fixture
def base(prefect_api: PrefectServer) -> str:
    """The address of the UI."""
    return prefect_api.api_url.removesuffix("/api")


@pytest.fixture
async def tab(prefect_api: PrefectServer, tmp_path: Path) -> AsyncIterator[Page]:
    async with page(tmp_path / "profile") as tab:
        yield tab
