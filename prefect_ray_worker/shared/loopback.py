"""Which hosts mean "this machine": the one definition for the worker, the driver and the doctor."""

import ipaddress
import socket
from urllib.parse import urlsplit


def ip_address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is written as, or None for a name.

    It understands every form that the operating system connects to: `127.1` and `0x7f000001` are
    127.0.0.1, and an IPv6 address that maps an IPv4 address is that IPv4 address.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_loopback_host(host: str | None) -> bool:
    """Return whether a host means the machine that connects to it; `0.0.0.0` and `::` do."""
    name = (host or "").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = ip_address_of(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_loopback_url(url: str) -> bool:
    """Return whether a URL leads to the machine that opens it; False for what is no URL."""
    try:
        return is_loopback_host(urlsplit(url).hostname)
    except ValueError:
        return False
