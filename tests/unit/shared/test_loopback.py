"""One definition of "this machine", for every way to write it."""

import pytest

from prefect_ray_worker.shared.loopback import is_loopback_host, is_loopback_url


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "ray.localhost",
        "127.0.0.1",
        "127.8.9.10",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "0",
        "::1",
        "[::1]",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::ffff:0.0.0.0",
    ],
)
def test_every_form_of_loopback_is_recognised(host: str) -> None:
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    ["", None, "head", "localhost.example.com", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"],
)
def test_other_hosts_are_not_loopback(host: str | None) -> None:
    assert not is_loopback_host(host)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://[::1]:8265/ray", True),
        ("http://head:8265", False),
        ("http://[broken", False),
        ("", False),
    ],
)
def test_loopback_urls(url: str, expected: bool) -> None:
    assert is_loopback_url(url) is expected
