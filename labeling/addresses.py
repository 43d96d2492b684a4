"""Where a request of ours may go: which addresses it must not reach, and a connection held to that.

A name is resolved once, every address that it leads to is checked, and the connection goes to the
one that was checked: whoever owns the name cannot send it elsewhere between the two.
"""

import ipaddress
import socket
import time
from collections.abc import Callable
from typing import Literal

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA = {
    ipaddress.ip_address(address)
    for address in (
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure; in a public range
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # Amazon; its 169.254.169.254 and that of the others is link-local
        "fd20:ce::254",  # Google
    )
}
"""Services that give a cloud machine its credentials, beside the link-local ones."""

NAT64 = ipaddress.ip_network("64:ff9b::/96")
# An IPv6 address of these forms carries an IPv4 address in its last 32 bits.
CARRIERS = [
    NAT64,
    ipaddress.ip_network("::/96"),  # IPv4-compatible
    ipaddress.ip_network("::ffff:0:0:0/96"),  # IPv4-translated (SIIT)
]
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # reaches this machine on many systems
BROADCAST = ipaddress.ip_address("255.255.255.255")
MOST_TRIED = 3
"""Addresses of one name that are tried."""
ISATAP = {0x00005EFE, 0x02005EFE}


class AddressRefused(OSError):
    """A request must not go there; the message names the address and says why."""

    def __init__(self, message: str, reason: Literal["never", "private"]) -> None:
        super().__init__(message)
        self.reason = reason


def embedded(address: str) -> list[IPAddress]:
    """The address, and every IPv4 address that it carries on the way through a gateway.

    Mapped, compatible, translated, NAT64, 6to4, Teredo (its server, its client) and ISATAP.
    Raises: ValueError if it is no address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 4:
        return [found]
    number = int(found)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    inner: list[IPAddress] = []
    if found.ipv4_mapped is not None:
        inner.append(found.ipv4_mapped)
    if found.sixtofour is not None:
        inner.append(found.sixtofour)
    if found.teredo is not None:
        inner += found.teredo
    # "::" and "::1" are addresses of their own, not 0.0.0.0 and 0.0.0.1.
    if number > 1 and any(found in network for network in CARRIERS):
        inner.append(last)
    if (number >> 32) & 0xFFFFFFFF in ISATAP:
        inner.append(last)
    return [found, *inner]


def is_public(address: str) -> bool:
    """Whether it, and everything that it carries, is an address of the open internet."""
    found, *inner = embedded(address)
    if is_never_allowed(address) or not all(one.is_global for one in inner):
        return False
    if found.version == 4:
        return found.is_global
    if found.ipv4_mapped is not None or found in NAT64:
        return True  # what counts is whom it leads to
    # Python calls some ranges public that were never given out, so the range is asked too.
    return found in GLOBAL_UNICAST and found.is_global


def is_never_allowed(address: str) -> bool:
    """Metadata services, link-local, multicast and unspecified addresses: nobody may allow them."""
    return any(
        one in METADATA
        or one.is_link_local
        or one.is_multicast
        or one.is_unspecified
        or (one.version == 4 and (one in THIS_NETWORK or one == BROADCAST))
        for one in embedded(address)
    )


def check_allowed(address: str, *, own_network: bool) -> None:
    """Raises: AddressRefused where a request must not go.

    Args:
        own_network: whether an administrator has allowed private and loopback addresses.
    """
    if is_never_allowed(address):
        raise AddressRefused(
            f"{address} is never allowed: a metadata service, a link-local or a multicast address",
            "never",
        )
    if not own_network and not is_public(address):
        raise AddressRefused(f"{address} lies in a private network", "private")


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as this machine finds them.

    Raises: OSError if the name is not known.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def connect(host: str, port: int, timeout: float, check: Callable[[str], None]) -> socket.socket:
    """A connection to an address of the host that has passed `check`, within `timeout` seconds for
    all that are tried together.

    One address that does not pass is enough to connect to none: otherwise chance would decide.
    Raises: what `check` raises; OSError if nobody answers.
    """
    addresses = resolve(host, port)
    for address in addresses:
        check(address)
    problem: OSError | None = None
    ends_at, tried = time.monotonic() + timeout, addresses[:MOST_TRIED]
    for n, address in enumerate(tried):
        # What a dead one leaves unused is for the next; none takes the time of those after it.
        left = max(0.01, ends_at - time.monotonic()) / (len(tried) - n)
        try:
            found = socket.create_connection((address, port), timeout=left)
        except OSError as error:
            problem = error
        else:
            found.settimeout(timeout)
            return found
    raise problem or OSError(f"{host} has no address")
