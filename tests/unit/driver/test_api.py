"""What a driver waits out when it asks Prefect, and what it says when it gives up."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from prefect_ray_worker.diagnosis.job import Ended, of_job
from prefect_ray_worker.driver.api import passes, trouble_with_api, was_not_taken
from prefect_ray_worker.driver.last_words import explained
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.exits import DriverExit
from prefect_ray_worker.shared.verdict_line import find_verdict

ATTEMPT = "0123456789ab"


def answer(code: int, text: str = "<html>") -> PrefectHTTPStatusError:
    request = httpx.Request("GET", "http://api/flow_runs/1")
    response = httpx.Response(code, request=request, text=text)
    error = httpx.HTTPStatusError("no", request=request, response=response)
    return PrefectHTTPStatusError.from_httpx_error(error)


ILLEGAL = httpx.LocalProtocolError("Illegal header value b'Bearer secret\\n'")
NO_SCHEME = httpx.UnsupportedProtocol("Request URL has an unsupported protocol 'prefect://'.")
AWAY = httpx.ConnectError("All connection attempts failed")


@pytest.mark.parametrize(
    ("exc", "exit_code", "category"),
    [
        (answer(401), DriverExit.NOT_AUTHORIZED, Category.PREFECT_API_UNAUTHORIZED),
        (answer(403), DriverExit.NOT_AUTHORIZED, Category.PREFECT_API_UNAUTHORIZED),
        (answer(429), DriverExit.API_UNREACHABLE, Category.PREFECT_API_UNREACHABLE),
        (answer(404), DriverExit.WRONG_API, Category.PREFECT_API_WRONG),
        (answer(405), DriverExit.WRONG_API, Category.PREFECT_API_WRONG),
        (answer(503), DriverExit.API_UNREACHABLE, Category.PREFECT_API_UNREACHABLE),
        (AWAY, DriverExit.API_UNREACHABLE, Category.PREFECT_API_UNREACHABLE),
    ],
)
def test_the_worker_reads_what_the_driver_says(
    exc: PrefectHTTPStatusError | httpx.TransportError,
    exit_code: DriverExit,
    category: Category,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trouble = trouble_with_api(exc, "https://me:secret@prefect.example/api")
    assert trouble.code == exit_code
    assert "https://***@prefect.example/api" in trouble.diagnosis.cause
    assert socket.gethostname() in trouble.diagnosis.cause
    assert "localhost" not in trouble.diagnosis.cause
    assert explained(trouble.code, trouble.diagnosis, ATTEMPT) == exit_code
    printed = capfd.readouterr().err
    found = of_job(
        Ended("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", exit_code, f"a line{printed}", ATTEMPT)
    )
    assert found.category is category
    assert found == trouble.diagnosis


@pytest.mark.parametrize(
    ("exc", "says"),
    [
        (ILLEGAL, "PREFECT_API_KEY or PREFECT_CLIENT_CUSTOM_HEADERS has a character"),
        (NO_SCHEME, "PREFECT_API_URL does not begin with http://"),
    ],
)
def test_a_request_that_cannot_be_sent_is_a_wrong_setting(exc: Exception, says: str) -> None:
    """It said that the API does not answer, and to set PREFECT_API_URL."""
    trouble = trouble_with_api(exc, "http://prefect/api")
    assert trouble.code == DriverExit.BAD_SETTING
    assert trouble.diagnosis.cause.startswith(says)
    assert "secret" not in str(trouble)


@pytest.mark.parametrize(
    "host", ["localhost:4200", "127.0.0.1", "127.1.2.3:80", "[::1]:4200", "0.0.0.0", "a.localhost"]
)
def test_addresses_that_mean_the_node_are_named(host: str) -> None:
    cause = trouble_with_api(AWAY, f"http://{host}/api").diagnosis.cause
    assert "localhost means the node itself there" in cause


def test_a_line_end_of_credentials_is_named_as_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret\n")
    cause = trouble_with_api(answer(401), "http://prefect/api").diagnosis.cause
    assert "PREFECT_API_AUTH_STRING has a blank or a line end there" in cause
    assert "secret" not in cause


def test_an_answer_of_many_lines_becomes_one() -> None:
    trouble = trouble_with_api(ValueError("a\n  b\n" * 1000), "http://x/api")
    assert trouble.code == DriverExit.WRONG_API
    assert "\n" not in trouble.diagnosis.cause
    assert len(trouble.diagnosis.cause) < 1000


@pytest.mark.parametrize(
    ("scheme", "variable", "value", "says"),
    [
        ("http", "PREFECT_API_SSL_CERT_FILE", "/no/such.pem", "/no/such.pem"),
        ("https", "PREFECT_API_SSL_CERT_FILE", "/no/such.pem", "/no/such.pem"),
        ("http", "PREFECT_LOGGING_LEVEL", "hunter2", "'DEBUG'"),
        ("https", "PREFECT_CLIENT_MAX_RETRIES", "hunter2", "valid integer"),
        ("http", "PREFECT_API_KEY", "hunter2\N{LATIN SMALL LETTER E WITH ACUTE}", "not allow"),
        ("http", "PREFECT_API_URL", "http://prefect:4200api", "(Invalid port)"),
        ("http", "PREFECT_API_URL", "http://me:hunter2/3@prefect/api", "http://***@prefect/api"),
    ],
)
def test_a_driver_that_cannot_start_for_a_setting_says_which(
    scheme: str, variable: str, value: str, says: str, tmp_path: Path
) -> None:
    """It ended with exit code 1 and a FileNotFoundError without the path, for plain http too."""
    env = {
        "PATH": os.environ["PATH"],
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_URL": f"{scheme}://127.0.0.1:9/api",
        variable: value,
    }
    script = (
        "import os, sys; from prefect_ray_worker.driver import engine; "
        f"sys.exit(engine.main(['{uuid4()}', '{ATTEMPT}']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env
    )
    assert ended.returncode == DriverExit.BAD_SETTING, ended.stderr
    found = find_verdict(ended.stderr, ATTEMPT)
    assert found is not None
    assert found.category is Category.PREFECT_SETTING_INVALID
    assert variable in found.cause
    assert says in found.cause
    assert "hunter2" not in found.cause


def test_an_authority_that_is_not_trusted_is_no_wrong_url() -> None:
    """It gave the advice to set env.PREFECT_API_URL."""
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    diagnosis = trouble_with_api(error, "https://prefect.example/api").diagnosis
    assert "PREFECT_API_SSL_CERT_FILE" in diagnosis.advice
    assert "PREFECT_API_URL" not in diagnosis.advice


@pytest.mark.parametrize(
    ("exc", "waits", "repeats"),
    [
        (answer(429), True, True),
        (answer(503), True, True),
        (answer(500), True, False),
        (answer(404, "<html>no such backend</html>"), True, True),
        (answer(404, '{"detail": "Not Found"}'), True, True),
        (answer(404, '{"detail": "Flow run not found"}'), False, False),
        (answer(404, '{"exception_message": "Object not found"}'), False, False),
        (answer(401), False, False),
        (answer(422, "{}"), False, False),
        (AWAY, True, True),
        (httpx.LocalProtocolError("Invalid input in state ConnectionState.CLOSED"), True, False),
        (ILLEGAL, False, False),
        (NO_SCHEME, False, False),
        (httpx.ReadTimeout("slow"), True, False),
        (ValueError("the flow's own"), False, False),
    ],
)
def test_what_a_driver_waits_out(exc: Exception, waits: bool, repeats: bool) -> None:
    """And what it may send again even if the first request could change something."""
    assert passes(exc) is waits
    assert was_not_taken(exc) is repeats
