"""Every odd answer of Ray's Jobs API, and of what stands before it, has one meaning."""

import ssl

import httpx
import pytest

from prefect_ray_worker.errors import (
    AmbiguousError,
    ClusterUnreachable,
    JobAlreadyExists,
    JobNotFound,
    JobNotTerminal,
    JobsApiError,
    NotAuthorized,
    NotRayDashboard,
    RequestRejected,
    TlsFailed,
)
from prefect_ray_worker.ray_api.answers import (
    Effect,
    error_from_response,
    error_from_transport,
    error_from_unusable_body,
)
from tests.fake_ray import answers as ray_says

ADDRESS = "http://ray-head:8265"
HTML = "<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
NGINX = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
NO_AGENT = "No available agent to submit job, please try again later."
PYTHON_TROUBLE = "Traceback (most recent call last):\n  File x\nValueError: inner\n"

Meaning = type[JobsApiError]

SAME_FOR_ALL: list[tuple[str, int, str, Meaning]] = [
    ("missing token", 401, ray_says.MISSING_TOKEN, NotAuthorized),
    ("wrong token", 403, ray_says.INVALID_TOKEN, NotAuthorized),
    ("a login proxy's 403 page", 403, HTML, NotAuthorized),
    ("duplicate id", 500, ray_says.already_exists("a"), JobAlreadyExists),
    ("duplicate id, older Ray", 400, "ValueError: Job a already exists.", JobAlreadyExists),
    ("bad label selector", 500, ray_says.bad_label("no label"), RequestRejected),
    ("unknown field", 400, ray_says.bad_request("TypeError: got 'x'"), RequestRejected),
    ("driver-type job", 400, "Can only stop submission type jobs", RequestRejected),
    ("browser", 405, ray_says.no_browsers("POST"), RequestRejected),
    ("body too large", 413, "Maximum request body size exceeded", RequestRejected),
    ("delete too early", 500, ray_says.not_terminal("a", "RUNNING"), JobNotTerminal),
    ("unknown job", 404, "Job a does not exist", JobNotFound),
    ("no trailing slash", 404, "404: Not Found", NotRayDashboard),
    ("ingress without backend", 404, "default backend - 404", NotRayDashboard),
    ("somebody's 404 page", 404, "<html>This page does not exist</html>", NotRayDashboard),
    ("somebody's 404 text", 404, "The resource does not exist", NotRayDashboard),
    ("a page instead of a 400", 400, HTML, NotRayDashboard),
]

UNCLEAR: list[tuple[str, int, str]] = [
    ("no agent", 500, NO_AGENT),
    ("bare 500", 500, ray_says.SERVER_IN_TROUBLE),
    ("dashboard's traceback", 500, PYTHON_TROUBLE),
    ("a proxy's 500 page", 500, HTML),
    ("empty 500", 500, ""),
    ("request time-out", 408, ""),
    ("too many requests", 429, "slow down"),
    ("bad gateway", 502, "Bad Gateway"),
    ("nginx's bad gateway page", 502, NGINX),
    ("no upstream", 503, "no healthy upstream"),
    ("gateway time-out", 504, ""),
]


def response(code: int, text: str, **headers: str) -> httpx.Response:
    kind = "text/html" if text.startswith("<") else "text/plain; charset=utf-8"
    return httpx.Response(code, text=text, headers={"content-type": kind, **headers})


@pytest.mark.parametrize("effect", ["safe", "submits"])
@pytest.mark.parametrize(
    ("code", "text", "meaning"), [pytest.param(*c[1:], id=c[0]) for c in SAME_FOR_ALL]
)
def test_a_clear_answer_means_the_same_for_every_request(
    code: int, text: str, meaning: Meaning, effect: Effect
) -> None:
    error = error_from_response(response(code, text), address=ADDRESS, effect=effect)
    assert type(error) is meaning
    assert ADDRESS in str(error)


@pytest.mark.parametrize(("code", "text"), [pytest.param(*c[1:], id=c[0]) for c in UNCLEAR])
def test_an_unclear_answer_is_ambiguous_for_a_submission_and_retryable_otherwise(
    code: int, text: str
) -> None:
    submission = error_from_response(response(code, text), address=ADDRESS, effect="submits")
    assert type(submission) is AmbiguousError
    look_up = error_from_response(response(code, text), address=ADDRESS, effect="safe")
    assert type(look_up) is ClusterUnreachable


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_a_dashboard(code: int) -> None:
    redirect = response(code, "", location="https://login.example/?next=secret-of-the-proxy")
    error = error_from_response(redirect, address=ADDRESS, effect="submits")
    assert type(error) is NotRayDashboard
    assert "secret-of-the-proxy" not in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ray_says.bad_label("no label"), "Invalid label key name `no label`"),
        (ray_says.bad_request("TypeError: got 'x'"), "TypeError: got 'x'"),
        (ray_says.not_terminal("a", "RUNNING"), "in a non-terminal state RUNNING"),
        (PYTHON_TROUBLE, "ValueError: inner"),
    ],
)
def test_the_message_is_the_cause_and_not_the_traceback(text: str, words: str) -> None:
    """The dashboard ends wrapped tracebacks with a line of one full stop: that is no cause."""
    message = str(error_from_response(response(500, text), address=ADDRESS, effect="safe"))
    assert words in message
    assert "Traceback" not in message


def test_a_long_body_is_cut() -> None:
    error = error_from_response(response(503, "x" * 100_000), address=ADDRESS, effect="safe")
    assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("text", "safe", "submits"),
    [
        (HTML, NotRayDashboard, NotRayDashboard),
        ("not json", ClusterUnreachable, AmbiguousError),
        ("", ClusterUnreachable, AmbiguousError),
    ],
)
def test_a_success_without_a_usable_body(text: str, safe: Meaning, submits: Meaning) -> None:
    answer = response(200, text)
    assert type(error_from_unusable_body(answer, address=ADDRESS, effect="safe")) is safe
    assert type(error_from_unusable_body(answer, address=ADDRESS, effect="submits")) is submits


def test_html_is_known_by_its_body_too() -> None:
    answer = httpx.Response(200, content=f"  \n{HTML}", headers={"content-type": "text/plain"})
    error = error_from_unusable_body(answer, address=ADDRESS, effect="submits")
    assert type(error) is NotRayDashboard


def over_tls(exc: httpx.HTTPError, reason: ssl.SSLError) -> httpx.HTTPError:
    exc.__cause__ = OSError()
    exc.__cause__.__context__ = reason
    return exc


def distrusted() -> ssl.SSLError:
    return ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] unable to get issuer")


@pytest.mark.parametrize(
    ("exc", "safe", "submits"),
    [
        (httpx.ConnectError("refused"), ClusterUnreachable, ClusterUnreachable),
        (httpx.ConnectTimeout(""), ClusterUnreachable, ClusterUnreachable),
        (httpx.PoolTimeout(""), ClusterUnreachable, ClusterUnreachable),
        (httpx.ReadTimeout(""), ClusterUnreachable, AmbiguousError),
        (httpx.WriteTimeout(""), ClusterUnreachable, AmbiguousError),
        (httpx.ReadError("reset"), ClusterUnreachable, AmbiguousError),
        (httpx.WriteError("reset"), ClusterUnreachable, AmbiguousError),
        (httpx.RemoteProtocolError("half a body"), ClusterUnreachable, AmbiguousError),
        (httpx.DecodingError("bad gzip"), ClusterUnreachable, AmbiguousError),
        (httpx.ProxyError("503"), ClusterUnreachable, AmbiguousError),
        (httpx.UnsupportedProtocol("ftp"), NotRayDashboard, NotRayDashboard),
        (httpx.InvalidURL("no host"), NotRayDashboard, NotRayDashboard),
        (httpx.LocalProtocolError("Illegal header"), RequestRejected, RequestRejected),
        (over_tls(httpx.ConnectError(""), distrusted()), TlsFailed, TlsFailed),
        (
            over_tls(httpx.ConnectError(""), ssl.SSLError(1, "WRONG_VERSION_NUMBER")),
            TlsFailed,
            TlsFailed,
        ),
        (
            over_tls(httpx.ConnectError(""), ssl.SSLEOFError(8, "EOF")),
            ClusterUnreachable,
            ClusterUnreachable,
        ),
        (
            over_tls(httpx.ReadTimeout(""), ssl.SSLWantReadError()),
            ClusterUnreachable,
            AmbiguousError,
        ),
    ],
)
def test_no_whole_answer(exc: httpx.HTTPError, safe: Meaning, submits: Meaning) -> None:
    """Only a request that never left is surely without effect."""
    assert type(error_from_transport(exc, address=ADDRESS, effect="safe")) is safe
    assert type(error_from_transport(exc, address=ADDRESS, effect="submits")) is submits


def test_a_distrusted_certificate_names_the_way_out() -> None:
    exc = over_tls(httpx.ConnectError(""), distrusted())
    assert "ca_file" in str(error_from_transport(exc, address=ADDRESS, effect="safe"))


def test_an_illegal_header_is_not_quoted() -> None:
    exc = httpx.LocalProtocolError("Illegal header value b'Bearer top-secret\\n'")
    error = error_from_transport(exc, address=ADDRESS, effect="submits")
    assert "top-secret" not in str(error)
