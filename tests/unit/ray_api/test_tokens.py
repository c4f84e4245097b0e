"""Where the bearer token comes from, when it is read again, and in which header it goes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import respx

from prefect_ray_worker.errors import NotAuthorized, RequestRejected
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import TokenSource
from tests.fake_ray import FakeRay
from tests.fake_ray import answers as ray_says

ADDRESS = "http://ray-head:8265"
Headers = tuple[tuple[str, str], ...]


@pytest.fixture(autouse=True)
def no_ray_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests must not depend on the tokens of whoever runs them."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def jobs() -> Iterator[respx.Route]:
    with respx.mock(base_url=ADDRESS) as router:
        yield router.get("/api/jobs/").respond(json=[])


async def ask(source: TokenSource, headers: Headers = ()) -> None:
    async with JobsClient(Connection(ADDRESS, token=source, headers=headers)) as client:
        await client.list()


def sent(route: respx.Route) -> list[str | None]:
    return [call.request.headers.get("authorization") for call in route.calls]


async def test_without_a_token_no_authorization_is_sent(jobs: respx.Route) -> None:
    await ask(TokenSource(environment=True))
    assert sent(jobs) == [None]


async def test_a_literal_token_is_sent_without_its_line_end(jobs: respx.Route) -> None:
    await ask(TokenSource(literal="abc\n"))
    assert sent(jobs) == ["Bearer abc"]


async def test_a_token_file_is_sent_without_its_line_end(jobs: respx.Route, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    await ask(TokenSource(path=str(tmp_path / "token")))
    assert sent(jobs) == ["Bearer abc"]


async def test_a_token_file_that_cannot_be_read_is_no_token(
    jobs: respx.Route, tmp_path: Path
) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfea\x00")  # UTF-16, by an editor on Windows
    await ask(TokenSource(path=str(tmp_path / "token")))
    await ask(TokenSource(path=str(tmp_path / "missing")))
    assert sent(jobs) == [None, None]


async def test_the_token_of_the_environment_goes_nowhere_by_itself(
    jobs: respx.Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    await ask(TokenSource())
    assert sent(jobs) == [None]


async def test_a_token_that_exists_is_used_where_the_mode_is_unset(
    jobs: respx.Route, tmp_path: Path
) -> None:
    """Ray 2.60 then turns token authentication on for a head that it starts."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-the-home")
    await ask(TokenSource(environment=True))
    assert sent(jobs) == ["Bearer of-the-home"]


@pytest.mark.parametrize("mode", ["disabled", ""])
async def test_another_mode_turns_the_token_of_the_environment_off(
    jobs: respx.Route, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    await ask(TokenSource(environment=True))
    assert sent(jobs) == [None]


async def test_ray_s_variables_are_read_in_ray_s_order(
    jobs: respx.Route, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-the-home")
    await ask(TokenSource(environment=True))
    (tmp_path / "token").write_text("of-the-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    await ask(TokenSource(environment=True))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-variable")
    await ask(TokenSource(environment=True))
    await ask(TokenSource(literal="of-the-block"))
    assert sent(jobs) == [
        "Bearer of-the-home",
        "Bearer of-the-file",
        "Bearer of-the-variable",
        "Bearer of-the-block",
    ]


async def test_the_user_s_authorization_goes_to_the_proxy_and_ours_to_ray(
    jobs: respx.Route,
) -> None:
    await ask(TokenSource(literal="abc"), (("Authorization", "Basic proxy"),))
    headers = jobs.calls.last.request.headers
    assert headers["authorization"] == "Basic proxy"
    assert headers["x-ray-authorization"] == "Bearer abc"


def refusing_all_but(token: str, status: int) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") == f"Bearer {token}":
            return httpx.Response(200, json=[])
        return httpx.Response(status, text=ray_says.MISSING_TOKEN)

    return answer


@pytest.mark.parametrize("status", [401, 403])
async def test_a_renewed_token_file_is_read_again_after_a_refusal(
    jobs: respx.Route, tmp_path: Path, status: int
) -> None:
    """Kubernetes renews tokens in place; Ray answers 403 to the old one."""
    file = tmp_path / "token"
    file.write_text("old")
    jobs.mock(side_effect=refusing_all_but("old", status))
    async with JobsClient(Connection(ADDRESS, token=TokenSource(path=str(file)))) as client:
        await client.list()
        file.write_text("new")
        jobs.mock(side_effect=refusing_all_but("new", status))
        await client.list()
        await client.list()
    assert sent(jobs) == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]


@pytest.mark.parametrize("status", [401, 403])
async def test_the_same_token_is_not_tried_twice(jobs: respx.Route, status: int) -> None:
    jobs.mock(side_effect=refusing_all_but("another", status))
    with pytest.raises(NotAuthorized) as caught:
        await ask(TokenSource(literal="top-secret"))
    assert jobs.call_count == 1
    assert "top-secret" not in str(caught.value)


async def test_a_renewed_token_that_is_refused_too_ends_it(
    jobs: respx.Route, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    jobs.mock(side_effect=refusing_all_but("another", 401))
    async with JobsClient(Connection(ADDRESS, token=TokenSource(path=str(file)))) as client:
        with pytest.raises(NotAuthorized):
            await client.list()
        file.write_text("new")
        with pytest.raises(NotAuthorized):
            await client.list()
    assert sent(jobs) == ["Bearer old", "Bearer old", "Bearer new"]


async def test_an_unreadable_token_file_lets_the_cluster_s_refusal_speak(
    jobs: respx.Route, tmp_path: Path
) -> None:
    jobs.mock(side_effect=refusing_all_but("abc", 401))
    with pytest.raises(NotAuthorized, match="Missing authentication token"):
        await ask(TokenSource(path=str(tmp_path / "nowhere")))
    assert sent(jobs) == [None]


@pytest.mark.parametrize("token", ["top\nsecret", "top-s\u00e9cret"])
async def test_a_token_that_is_no_http_is_refused_without_showing_it(token: str) -> None:
    async with FakeRay() as ray:
        connection = Connection(ray.address, token=TokenSource(literal=token))
        async with JobsClient(connection) as client:
            with pytest.raises(RequestRejected) as caught:
                await client.list()
    assert "top" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "headers", "cookies", "words"),
    [
        (TokenSource(), (), (), "Missing authentication token"),
        (TokenSource(literal="wrong"), (), (), "Invalid authentication token"),
        (TokenSource(literal="right"), (), (), None),
        (TokenSource(), (("X-Ray-Authorization", "Bearer right"),), (), None),
        (TokenSource(), (), (("ray-authentication-token", "right"),), None),
    ],
)
async def test_the_token_opens_a_guarded_cluster(
    source: TokenSource, headers: Headers, cookies: Headers, words: str | None
) -> None:
    async with FakeRay(token="right") as ray:
        connection = Connection(ray.address, token=source, headers=headers, cookies=cookies)
        async with JobsClient(connection) as client:
            if words is None:
                assert await client.list() == []
            else:
                with pytest.raises(NotAuthorized, match=words):
                    await client.list()


_HOME_FILE, _OTHER_FILE = ".ray/auth_token", "token"
_CASES: list[tuple[dict[str, str], dict[str, str]]] = [
    ({}, {}),
    ({}, {_HOME_FILE: "of-the-home\n"}),
    ({"RAY_AUTH_MODE": ""}, {_HOME_FILE: "of-the-home"}),
    ({"RAY_AUTH_MODE": "TOKEN"}, {_HOME_FILE: "of-the-home"}),
    ({"RAY_AUTH_MODE": "disabled"}, {_HOME_FILE: "of-the-home"}),
    ({"RAY_AUTH_TOKEN": " of-the-variable \n"}, {_HOME_FILE: "of-the-home"}),
    ({"RAY_AUTH_TOKEN": ""}, {_HOME_FILE: "of-the-home"}),
    ({"RAY_AUTH_TOKEN": "  "}, {_HOME_FILE: "of-the-home"}),
    ({"RAY_AUTH_TOKEN_PATH": "token"}, {_HOME_FILE: "of-the-home", _OTHER_FILE: "of-the-file\n"}),
    ({"RAY_AUTH_TOKEN_PATH": ""}, {_HOME_FILE: "of-the-home"}),
    ({"RAY_AUTH_TOKEN_PATH": "missing"}, {_HOME_FILE: "of-the-home"}),
    ({"RAY_AUTH_TOKEN_PATH": "token"}, {_HOME_FILE: "of-the-home", _OTHER_FILE: ""}),
    (
        {"RAY_AUTH_TOKEN": "of-the-variable", "RAY_AUTH_TOKEN_PATH": "token"},
        {_OTHER_FILE: "of-the-file"},
    ),
]
_RAYS_ANSWERS = """
import json, os, sys
from ray._private.authentication import authentication_token_setup as setup
from ray._raylet import AuthenticationTokenLoader, Config
answers = []
for folder, variables in json.loads(sys.argv[1]):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    os.environ.update(variables, HOME=folder)
    os.chdir(folder)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        is_on = setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        loader = AuthenticationTokenLoader.instance()
        answers.append(loader.get_raw_token() if is_on else None)
    except Exception:  # a file that RAY_AUTH_TOKEN_PATH names and that has no token
        answers.append(None)
print(json.dumps(answers))
"""


def test_the_token_is_the_one_that_ray_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the compiled part of the Ray that is installed."""
    asked: list[tuple[str, dict[str, str]]] = []
    for number, (variables, files) in enumerate(_CASES):
        folder = tmp_path / str(number)
        (folder / ".ray").mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        asked.append((str(folder), variables))
    result = subprocess.run(
        [sys.executable, "-c", _RAYS_ANSWERS, json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    expected = json.loads(result.stdout.splitlines()[-1])
    found: list[str | None] = []
    for folder, variables in asked:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name, value in {**variables, "HOME": folder}.items():
                patch.setenv(name, value)
            found.append(TokenSource(environment=True).read())
    assert found == expected
    assert {"of-the-home", "of-the-file", "of-the-variable", None} == set(found)
