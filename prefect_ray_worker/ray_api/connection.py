"""The address and credentials of one Ray cluster: hashable, and without secrets in its repr."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import httpx

from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.ray_api.gateway import Gateway
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.shared.loopback import is_loopback_url

_SCHEME = re.compile(r"(?:https?|ray|ftp|tcp|wss?)://", re.IGNORECASE)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?(?=/|$)")


@dataclass(frozen=True)
class Connection:
    """Address and credentials of one Ray cluster's dashboard.

    Equal connections share one HTTP pool and one status poll.

    Attributes:
        address: `http(s)://host[:port][/prefix]` of the dashboard, without a trailing slash.
        token: Where the bearer token comes from.
        headers: Extra request headers, for example for a proxy in front of the dashboard.
        cookies: Cookies, for example of a login proxy.
        verify: Whether to verify the TLS certificate.
        ca_file: A PEM file of certificate authorities to trust instead of the system's.
        off_limits: True if nothing must be sent to this address. Every request then fails as if
            the cluster were unreachable.
        gateway: Adds credentials to each request; replaces `verify` and `ca_file`.
    """

    address: str
    token: TokenSource = field(default_factory=TokenSource, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    cookies: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    verify: bool = True
    ca_file: str | None = None
    off_limits: bool = False
    gateway: Gateway | None = field(default=None, repr=False)

    @property
    def is_loopback(self) -> bool:
        """Whether the cluster is on this machine. Requests to it must not go through a proxy."""
        return is_loopback_url(self.address)

    def with_token_of_environment(self, allowed: bool) -> "Connection":
        """Return the connection with the environment's token, if it has no token of its own.

        Args:
            allowed: Whether the token can be sent to this address. If False, nothing changes.
        """
        if allowed and self.token == TokenSource():
            return replace(self, token=TokenSource(environment=True))
        return self


def normalize_address(value: str, *, variable: str = "address") -> str:
    """Check a dashboard address and return it in canonical form.

    Args:
        value: The address as the user wrote it.
        variable: Name of the variable, for the error message.

    Returns:
        `scheme://host[:port][/prefix]` with a lower-case host and no trailing slash.

    Raises:
        InvalidConfiguration: The value is not the http(s) address of a dashboard.
    """
    text = value.strip()
    shown = _recognisable(text)
    if text.startswith("ray://"):
        raise InvalidConfiguration(
            f"{variable}{shown} is a Ray Client address. Jobs are submitted to the "
            "dashboard: use http://<head>:8265."
        )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # Leave out the exception's message: it quotes part of a password that contains a slash.
        raise InvalidConfiguration(
            f"{variable}{shown} is not a URL: its port or its brackets are wrong."
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidConfiguration(
            f"{variable}{shown} is not the address of a Ray dashboard. Write "
            "http://<head>:8265, or https://… with a path prefix if an ingress adds one."
        )
    if parts.username or parts.password:
        raise InvalidConfiguration(
            f"{variable}{shown} holds credentials. Put them into a `RayCluster` block "
            "(token, headers or cookies), where they are stored as secrets."
        )
    if parts.query or parts.fragment:
        raise InvalidConfiguration(f"{variable}{shown} must not have a query or a fragment.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    address = f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"
    if not _can_be_requested(address):
        raise InvalidConfiguration(
            f"{variable}{shown} is not a URL: its host is no name and no IP address, or it has a "
            "character that no URL can have. Type it anew: a copied one can hold a character that "
            "is not shown."
        )
    return address


def frozen_items(items: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return a mapping as the sorted tuple that a `Connection` can hash."""
    return tuple(sorted(items.items()))


def _can_be_requested(address: str) -> bool:
    try:
        return bool(httpx.URL(address).host)
    except (httpx.InvalidURL, ValueError):  # ValueError: of idna, for a host such as `xn--a`
        return False


def _recognisable(text: str) -> str:
    """Return the scheme and host of a URL for a message. Other text can be a secret: return ""."""
    host = _HOST.match(text.rpartition("@")[2] if "@" in text else text.partition("://")[2])
    scheme = _SCHEME.match(text)
    return f" '{scheme[0]}{host[0]}'" if scheme and host else ""
