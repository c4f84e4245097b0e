"""The clients of one process share the TLS context that verifies the Prefect API."""

import os
import shutil
import ssl
from pathlib import Path
from typing import Any

import certifi
import pytest
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.settings import (
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    temporary_settings,
)

from prefect_ray_worker.prefect_api.compat import clients

URL = "https://prefect.invalid/api"


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """Return the contexts that are made; what is patched is set back."""
    for kind in (PrefectClient, SyncPrefectClient):
        monkeypatch.setattr(kind, "__init__", kind.__init__)
    monkeypatch.setattr(clients, "_contexts", {})
    contexts: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def create(*arguments: Any, **options: Any) -> ssl.SSLContext:
        contexts.append(make(*arguments, **options))
        return contexts[-1]

    monkeypatch.setattr(ssl, "create_default_context", create)
    clients.share_tls_context()
    contexts.clear()
    return contexts


def test_clients_of_both_kinds_share_one(made: list[ssl.SSLContext]) -> None:
    for _ in range(2):
        SyncPrefectClient(URL)
        PrefectClient(URL, httpx_settings={"headers": {"X-Any": "1"}})
    assert made == []


@pytest.mark.parametrize("own", [{"verify": False}, {"http2": True}], ids=str)
def test_client_that_chooses_its_own_gets_it(
    made: list[ssl.SSLContext], own: dict[str, bool]
) -> None:
    """The protocols of HTTP/2 in a shared context would reach the clients of HTTP/1 as well."""
    SyncPrefectClient(URL, httpx_settings=own)
    assert len(made) == 1, "Prefect's own"


def test_unverified_context_is_not_shared(made: list[ssl.SSLContext]) -> None:
    with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True}):
        SyncPrefectClient(URL)
        SyncPrefectClient(URL)
    assert [context.verify_mode for context in made] == [ssl.CERT_NONE] * 2


def test_renewed_authorities_are_read_again(made: list[ssl.SSLContext], tmp_path: Path) -> None:
    own = tmp_path / "authorities.pem"
    shutil.copy(certifi.where(), own)
    with temporary_settings({PREFECT_API_SSL_CERT_FILE: str(own)}):
        SyncPrefectClient(URL)
        SyncPrefectClient(URL)
        assert len(made) == 1
        os.utime(own, (1, 1))
        SyncPrefectClient(URL)
        assert len(made) == 2


def test_missing_authorities_are_still_an_error(tmp_path: Path) -> None:
    with (
        temporary_settings({PREFECT_API_SSL_CERT_FILE: str(tmp_path / "none.pem")}),
        pytest.raises(FileNotFoundError),
    ):
        SyncPrefectClient(URL)
