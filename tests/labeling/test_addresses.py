"""Where requests of ours may go: every way to write an inner address is seen through."""

import socket

import pytest

from labeling import addresses
from labeling.addresses import AddressRefused, check_allowed, connect, embedded, is_public

PUBLIC = [
    "93.184.216.34",
    "2606:2800:220:1:248:1893:25c8:1946",
    "::ffff:93.184.216.34",
    "64:ff9b::93.184.216.34",
    "2002:5db8:d822::1",
]
PRIVATE = [
    "127.0.0.1",
    "10.0.0.7",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "192.0.2.1",
    "240.0.0.1",
    "::1",
    "fd12:3456::1",
    "fec0::1",
    "::ffff:10.0.0.7",
    "::10.0.0.7",
    "::8.8.8.8",  # IPv4-compatible: given up long ago, nothing public is there
    "::ffff:0:10.0.0.7",
    "64:ff9b::10.0.0.7",
    "64:ff9b:1::10.0.0.7",
    "2002:a00:7::1",
    "2001:0:4136:e378:8000:63bf:f5ff:fff8",  # Teredo, its client 10.0.0.7
    "2606:2800:220:1:0:5efe:10.0.0.7",  # ISATAP
    "4000::1",
]
NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "224.0.0.1",
    "ff02::1",
    "0.0.0.0",
    "0.1.2.3",
    "255.255.255.255",
    "::",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:5601:5601",  # Teredo, its client 169.254.169.254
    "::ffff:0.0.0.0",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed_to_everybody(address):
    check_allowed(address, own_network=False)
    check_allowed(address, own_network=True)
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_allowed_by_an_administrator_alone(address):
    with pytest.raises(AddressRefused, match="private network") as refused:
        check_allowed(address, own_network=False)
    assert refused.value.reason == "private"
    check_allowed(address, own_network=True)


@pytest.mark.parametrize("address", NEVER)
def test_metadata_services_and_the_like_are_never_allowed(address):
    for own_network in (False, True):
        with pytest.raises(AddressRefused) as refused:
            check_allowed(address, own_network=own_network)
        assert refused.value.reason == "never"


def test_a_gateway_carries_the_address_behind_it():
    assert [str(one) for one in embedded("64:ff9b::7f00:1")] == ["64:ff9b::7f00:1", "127.0.0.1"]
    assert [str(one) for one in embedded("::1")] == ["::1"]


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name that answers otherwise the second time gains nothing: it is asked once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answers = iter(["127.0.0.1", "10.0.0.7"])
        monkeypatch.setattr(
            addresses.socket,
            "getaddrinfo",
            lambda host, port, *_args, **_more: (
                [(2, 1, 6, "", (next(answers), port))]
                if host == "rebinding.example"
                else [(2, 1, 6, "", (host, port))]
            ),
        )
        seen = []
        with connect("rebinding.example", port, 2, seen.append) as raw:
            assert raw.getpeername() == ("127.0.0.1", port)
        assert seen == ["127.0.0.1"]


def test_one_inner_address_among_public_ones_is_connected_to_by_nobody(monkeypatch):
    found = [(2, 1, 6, "", (address, 443)) for address in ("93.184.216.34", "10.0.0.7")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_args, **_more: found)
    monkeypatch.setattr(addresses.socket, "create_connection", None)  # would fail if it were called
    with pytest.raises(AddressRefused):
        connect("mixed.example", 443, 2, lambda one: check_allowed(one, own_network=False))


def test_dead_addresses_share_one_time_and_no_more_than_three_are_tried(monkeypatch):
    waited, clock = [], [100.0]

    def dead(address, timeout):
        waited.append(address[0])
        clock[0] += timeout
        raise TimeoutError("timed out")

    hosts = [f"93.184.216.{n}" for n in range(1, 7)]
    monkeypatch.setattr(addresses, "resolve", lambda _host, _port: hosts)
    monkeypatch.setattr(addresses.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(addresses.socket, "create_connection", dead)
    checked = []
    with pytest.raises(TimeoutError):
        connect("dead.example", 443, 10, checked.append)
    assert checked == hosts  # one inner address among them still forbids all
    assert waited == hosts[:3]
    assert clock[0] == pytest.approx(110)
