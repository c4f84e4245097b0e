"""One canonical spelling for every dashboard address, and no secret in any error or repr."""

import pytest

from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.ray_api.connection import Connection, frozen_items, normalize_address
from prefect_ray_worker.ray_api.tokens import TokenSource


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("http://127.0.0.1:8265/", "http://127.0.0.1:8265"),
        ("  http://ray-head:8265\n", "http://ray-head:8265"),
        ("HTTP://Ray-Head:8265", "http://ray-head:8265"),
        ("https://ray.example.com", "https://ray.example.com"),
        ("https://ray.example.com/clusters/Blue/", "https://ray.example.com/clusters/Blue"),
        ("https://ray.example.com//", "https://ray.example.com"),
        ("http://[::1]:8265", "http://[::1]:8265"),
        ("http://[2001:DB8::1]", "http://[2001:db8::1]"),
        ("https://[::1]:443/ray/", "https://[::1]:443/ray"),
    ],
)
def test_spellings_of_one_address_become_one(written: str, canonical: str) -> None:
    assert normalize_address(written) == canonical
    assert normalize_address(canonical) == canonical


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("ray://ray-head:10001", "use http://<head>:8265"),
        ("ray-head:8265", "not the address of a Ray dashboard"),
        ("ray-head", "not the address of a Ray dashboard"),
        ("auto", "not the address of a Ray dashboard"),
        ("", "not the address of a Ray dashboard"),
        ("ftp://ray-head", "not the address of a Ray dashboard"),
        ("http://", "not the address of a Ray dashboard"),
        ("http://:8265", "not the address of a Ray dashboard"),
        ("http://ray-head:none", "not a URL"),
        ("http://ray-head:99999", "not a URL"),
        ("http://[::1:8265", "not a URL"),
        ("http://10.0.0.256:8265", "'http://10.0.0.256:8265' is not a URL"),
        ("http://ray\u2013head:8265", "not a URL"),
        ("http://ray\u200bhead:8265", "not shown"),
        ("http://xn--a:8265", "not a URL"),
        ("http://ray-head:8265/a\x07", "not a URL"),
        ("http://ray-head:8265?a=b", "query or a fragment"),
        ("http://ray-head:8265/#/jobs", "query or a fragment"),
        ("http://user:pass@ray-head:8265", "`RayCluster` block"),
    ],
)
def test_what_is_no_dashboard_address_is_refused_with_the_way_out(written: str, words: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        normalize_address(written, variable="RAY_ADDRESS")
    assert words in str(caught.value)
    assert "RAY_ADDRESS" in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        "http://user:top-secret@ray-head:8265",
        "http://top-secret@ray-head:8265",
        "http://user:a@top-secret@ray-head:8265",
        "http://user:top-secret/b@ray-head:8265",
        "http://user:top-secret?b@ray-head:8265",
        "http://user:b?top-secret@ray-head:8265",
        "http://user:top-secret#b@ray-head:8265",
        "http://user:top-secret@ray-head:none",
        "ray://user:top-secret@ray-head:10001",
        "user:top-secret@ray-head:8265",
        "https://ray-head?token=top-secret",
    ],
)
def test_a_refusal_never_shows_credentials(written: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        normalize_address(written)
    assert "top-secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:8265/ray", True),
        ("http://[::1]:8265", True),
        ("http://ray-head:8265", False),
        ("http://127.0.0.1.example.com", False),
    ],
)
def test_loopback_is_known(address: str, expected: bool) -> None:
    assert Connection(address).is_loopback is expected


def secretive() -> Connection:
    return Connection(
        "http://ray-head:8265",
        token=TokenSource(literal="top-secret"),
        headers=frozen_items({"X-Key": "top-secret"}),
        cookies=frozen_items({"session": "top-secret"}),
    )


def test_a_connection_shows_no_secret() -> None:
    assert "top-secret" not in repr(secretive())
    assert "top-secret" not in repr(secretive().token)


def test_equal_connections_share_a_pool_whatever_the_order_of_their_headers() -> None:
    one = Connection("http://a", headers=frozen_items({"a": "1", "b": "2"}))
    other = Connection("http://a", headers=frozen_items({"b": "2", "a": "1"}))
    assert one == other
    assert len({one, other, secretive(), secretive()}) == 2
    assert secretive() != Connection("http://ray-head:8265")
