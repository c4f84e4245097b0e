"""Secrets in texts that many can read."""

import time

import pytest

from prefect_ray_worker.shared.masking import masked

SECRETS = [
    "https://me:se/cr@et@host/simple",
    "https://me:secret@host/simple",
    "https://secret@host/simple",
    "postgresql+asyncpg://u:secret@db:5432/prefect",
    "https://acc.blob.core.windows.net/c/f.zip?sv=1&sig=secret%2Fsecret&se=2",
    "https://s3/b/k?X-Amz-Credential=secret&X-Amz-Signature=secret&x=1",
    "https://s3/b/k?X-Amz-Security-Token=secret",
    "https://storage/b?X-Goog-Signature=secret",
    "https://host/?access_token=secret",
    "https://host/?key=secret",
    "headers {'Authorization': 'Bearer secret.1234'}",
    "Authorization: Basic secret==",
    "sent with Bearer secret.secret-secret",
    "LocalProtocolError: Illegal header value b'Bearer secret\\n'",
    "PGPASSWORD=secret pg_dump",
    "connection failed: password=secret host=db",
    "the key pnu_secretsecretsecret",
    "connect(host='db', password='secret, secret', port=1)",
    'Client(api_key = "secret")',
    r"""{'user': 'me', "token": "a\"secret"}""",
    r"""the body was "{\"db_password\": \"secret\"}\"""",
    "Headers({'x-api-key': b'secret'})",
    "environ({'PREFECT_API_AUTH_STRING': 'me:secret'})",
    "X-Api-Key: secret",
    "> x-auth-token: secret",
    r"Illegal header value b'secret\n'",
    r"""Illegal header value b"it's a \"secret\n".""",
    """Failed to parse runtime env: {"env_vars": {"A": "secret", "B": "x}secret"}, "pip": []}.""",
    """the body was "{\\"env_vars\\": {\\"A\\": \\"secret""",
    "runtime_env={'env_vars': {'A': 'secret'}} is wrong",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_masked(text: str) -> None:
    found = masked(text)
    assert "secret" not in found
    assert "cr@et" not in found
    assert "***" in found


def test_what_surrounds_a_secret_stays() -> None:
    quoted = r"""{'a': 1, 'password': 'x\'y', "b": 2} and \"token\": \"x\", \"c\": 3"""
    assert masked(quoted) == (
        r"""{'a': 1, 'password': '***', "b": 2} and \"token\": \"***\", \"c\": 3"""
    )


@pytest.mark.parametrize("text", SECRETS[:3])
def test_the_host_stays(text: str) -> None:
    assert masked(text) == "https://***@host/simple"


@pytest.mark.parametrize(
    "text",
    [
        "git+https://github.com/me/repo@v1.2 could not be cloned",
        "https://host:8265/api/jobs/?limit=3",
        "Bearer authentication failed",
        "The author of a@b.example wrote x=1",
        "No module named 'token_bucket'",
        "PREFECT_API_KEY: set it, or 'prefect cloud login'",
        "job variable cluster.token_path: /a/b is not there",
        "{'token_path': '/a/b', 'secret_name': 'x', 'tokenizer': 'y', 'max_tokens': 5}",
        'secrets "prefect-api" not found',
        "token: the file is empty",
        'create the Secret with --from-literal=api-key="$(cat key.txt)"',
        "if token == 'x': password = ask()",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "://a:",
        "://a",
        "token",
        "a=",
        "bearer ",
        "authorization:",
        "token='",
        "token-",
        "x-key",
        "token\\'",
        "env_vars:{",
        "Illegal header value b'\\",
    ],
)
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    began = time.process_time()
    masked(piece * (100_000 // len(piece)))
    assert time.process_time() - began < 2
