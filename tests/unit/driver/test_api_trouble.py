"""What a driver says when it cannot talk to Prefect."""

import socket

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from prefect_ray_worker.diagnosis.job import Ended, of_job
from prefect_ray_worker.driver.api_trouble import with_wrong_api, without_api
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import parse
from prefect_ray_worker.shared.exits import DriverExit


def answer(code: int) -> PrefectHTTPStatusError:
    request = httpx.Request("GET", "http://api/flow_runs/1")
    response = httpx.Response(code, request=request, text="<html>")
    error = httpx.HTTPStatusError("no", request=request, response=response)
    return PrefectHTTPStatusError.from_httpx_error(error)


AWAY = httpx.ConnectError("All connection attempts failed")


@pytest.mark.parametrize(
    ("exc", "exit_code", "category"),
    [
        (answer(401), DriverExit.NOT_AUTHORIZED, Category.PREFECT_API_UNAUTHORIZED),
        (answer(403), DriverExit.NOT_AUTHORIZED, Category.PREFECT_API_UNAUTHORIZED),
        (answer(405), DriverExit.WRONG_API, Category.PREFECT_API_WRONG),
        (answer(503), DriverExit.API_UNREACHABLE, Category.PREFECT_API_UNREACHABLE),
        (AWAY, DriverExit.API_UNREACHABLE, Category.PREFECT_API_UNREACHABLE),
    ],
)
def test_the_worker_reads_what_the_driver_says(
    exc: PrefectHTTPStatusError | httpx.TransportError,
    exit_code: DriverExit,
    category: Category,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = "https://me:secret@prefect.example/api"
    assert without_api(exc, url) == exit_code
    said = capsys.readouterr().err
    assert "https://***@prefect.example/api" in said
    assert socket.gethostname() in said
    assert "localhost" not in said
    found = of_job(Ended("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", exit_code, f"a line{said}"))
    assert found.category is category
    assert str(found) == said.strip(), "one line, and all of it"


@pytest.mark.parametrize(
    "host", ["localhost:4200", "127.0.0.1", "127.1.2.3:80", "[::1]:4200", "0.0.0.0", "a.localhost"]
)
def test_addresses_that_mean_the_node_are_named(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    without_api(AWAY, f"http://{host}/api")
    assert "localhost means the node itself there" in capsys.readouterr().err


def test_an_answer_of_many_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert with_wrong_api(ValueError("a\n  b\n" * 1000), "http://x/api") == DriverExit.WRONG_API
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert len(said) < 1000
    assert parse(said) is not None
