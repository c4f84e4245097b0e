"""What an error of the Prefect API means to a worker."""

import logging

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_ray_worker.doctor.work_pool import open_prefect
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api.answers import outlast


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (httpx.LocalProtocolError("Illegal header value b'Bearer secret'"), "PREFECT_API_KEY"),
        (httpx.UnsupportedProtocol("unsupported protocol 'secret'"), "PREFECT_API_URL"),
    ],
)
async def test_a_worker_that_can_send_nothing_does_not_wait_and_shows_no_key(
    error: Exception, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It logged the key of the API for ten minutes, as the reason why the API is away."""

    async def ask() -> None:
        raise error

    with pytest.raises(InvalidConfiguration, match=says) as raised:
        await outlast(ask, logging.getLogger("worker"), once=False)
    assert "secret" not in str(raised.value)
    assert not caplog.records


async def test_a_command_that_can_send_nothing_names_the_setting() -> None:
    """It advised to check that the server runs."""
    # httpx raises its own error from one of httpcore.
    unsent = httpx.LocalProtocolError("Illegal header value b'Bearer secret'")
    unsent.__cause__ = RuntimeError(str(unsent))
    with (
        temporary_settings({PREFECT_API_URL: "http://prefect/api"}),
        pytest.raises(InvalidConfiguration, match="PREFECT_API_KEY") as raised,
    ):
        async with open_prefect("work pool 'a'"):
            raise unsent
    assert "secret" not in str(raised.value)
