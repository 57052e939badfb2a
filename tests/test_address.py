"""The address of a client: its peer's, or what trusted proxies say."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app import address
from sse_app.address import HEADERS, HOPS_MAX, Proxies, bucket, is_public, parse_address

TRUSTED = ("10.0.0.0/8", "2001:db8:1::/48", "unix")
PROXY = "10.0.0.1"


def client(header: str, *lines: str, peer: str | None = PROXY, trusted: tuple[str, ...] = TRUSTED) -> str:
    """The address of who sent these lines of a header."""
    raw = [(b"host", b"hub.example"), *((header.encode(), line.encode()) for line in lines)]
    return Proxies.parse(trusted, header).client_address(peer, raw)


# What a trusted proxy sent, and whose address that is.
FORWARDED_FOR = [
    (("203.0.113.7",), "203.0.113.7"),
    ((" 203.0.113.7\t",), "203.0.113.7"),
    (("203.0.113.7:4711",), "203.0.113.7"),
    (("2001:db8::7",), "2001:db8::7"),
    (("2001:DB8:0::0:7",), "2001:db8::7"),
    (("[2001:db8::7]",), "2001:db8::7"),
    (("[2001:db8::7]:4711",), "2001:db8::7"),
    (("fe80::7%eth0",), "fe80::7"),
    (("[fe80::7%25eth0]:4711",), "fe80::7"),
    (("::ffff:203.0.113.7",), "203.0.113.7"),
    (("[::ffff:cb00:7107]:4711",), "203.0.113.7"),
    (("192.0.2.66, 203.0.113.7",), "203.0.113.7"),
    (("192.0.2.66,203.0.113.7,10.0.0.2",), "203.0.113.7"),
    (("192.0.2.66, 203.0.113.7, 2001:db8:1::9, ::ffff:10.0.0.2",), "203.0.113.7"),
    (("192.0.2.66", "203.0.113.7"), "203.0.113.7"),
    (("192.0.2.66, 203.0.113.7", "10.0.0.3, 10.0.0.2"), "203.0.113.7"),
    (("10.0.0.3, 10.0.0.2",), "10.0.0.3"),
    (("unknown",), PROXY),
    (("unknown, 10.0.0.2",), "10.0.0.2"),
    (("192.0.2.66, _hidden, 10.0.0.2",), "10.0.0.2"),
    (("192.0.2.66, unix:",), PROXY),
    (("192.0.2.66, unix",), PROXY),
    (("",), PROXY),
    ((),PROXY),
    (("192.0.2.66,",), PROXY),
    (("192.0.2.66,,10.0.0.2",), "10.0.0.2"),
    (("203.0.113.7:port",), PROXY),
    (("203.0.113.7:123456",), PROXY),
    (("203.0.113.7%eth0",), PROXY),
    (("203.0.113",), PROXY),
    (("203.0.113.007",), PROXY),
    (("203.0.113.7/32",), PROXY),
    (("[203.0.113.7]",), PROXY),
    (("[2001:db8::7",), PROXY),
    (("2001:db8::7]:1",), PROXY),
    (("٢٠٣.0.113.7",), PROXY),
    (('"203.0.113.7"',), PROXY),
    (("for=203.0.113.7",), PROXY),
    (("localhost",), PROXY),
    (("3405803783",), PROXY),
]  # fmt: skip
FORWARDED = [
    (("for=203.0.113.7",), "203.0.113.7"),
    (("For=203.0.113.7;proto=https;by=10.0.0.1",), "203.0.113.7"),
    (("proto=https; FOR=203.0.113.7",), "203.0.113.7"),
    (('for="203.0.113.7:4711"',), "203.0.113.7"),
    (("for=203.0.113.7:_port",), "203.0.113.7"),
    (('for="[2001:db8::7]"',), "2001:db8::7"),
    (('for="[2001:db8::7]:4711" ; host=hub.example',), "2001:db8::7"),
    (('for="[::ffff:203.0.113.7]"',), "203.0.113.7"),
    (("for=192.0.2.66, for=203.0.113.7",), "203.0.113.7"),
    (("for=192.0.2.66", 'for=203.0.113.7,for="[2001:db8:1::9]"'), "203.0.113.7"),
    (("for=10.0.0.3, for=10.0.0.2",), "10.0.0.3"),
    (("for=192.0.2.66, for=unknown, for=10.0.0.2",), "10.0.0.2"),
    (('for=192.0.2.66, for="_hidden:_port"',), PROXY),
    (("for=192.0.2.66, proto=https",), PROXY),
    (("for=192.0.2.66;for=203.0.113.7",), PROXY),
    (("for=",), PROXY),
    (('for=""',), PROXY),
    (("203.0.113.7",), PROXY),
    (("for = 203.0.113.7",), PROXY),
    (("",), PROXY),
    ((), PROXY),
    # A client's open quote, and a Host of its choice in what its proxy writes, change nothing.
    (('for="192.0.2.66, for=203.0.113.7',), "203.0.113.7"),
    (('for="192.0.2.66', "for=203.0.113.7"), "203.0.113.7"),
    (('for=203.0.113.7;host="x,for=192.0.2.66;y="',), "203.0.113.7"),
    ((r'for=203.0.113.7;host="\",for=192.0.2.66;y=\""',), "203.0.113.7"),
    ((r'for="\\", for=203.0.113.7;host="\\"',), "203.0.113.7"),
    ((r'for="203.0.113.7\"',), PROXY),
]  # fmt: skip
FORMS = [("x-forwarded-for", *form) for form in FORWARDED_FOR] + [("forwarded", *form) for form in FORWARDED]


@pytest.mark.parametrize(("header", "lines", "expected"), FORMS, ids=[f"{form[0]}: {form[1]!a}" for form in FORMS])
def test_a_trusted_proxy_says_whose_request_it_is(header: str, lines: tuple[str, ...], expected: str) -> None:
    assert client(header, *lines) == expected


@pytest.mark.parametrize(("header", "lines", "_"), FORMS, ids=[f"{form[0]}: {form[1]!a}" for form in FORMS])
def test_who_is_not_trusted_says_nothing(header: str, lines: tuple[str, ...], _: str) -> None:
    assert client(header, *lines, peer="192.0.2.1") == "192.0.2.1"
    assert client(header, *lines, peer=None, trusted=TRUSTED[:2]) == "unix"
    assert client(header, *lines, trusted=()) == PROXY


def test_only_the_header_that_is_named_is_read() -> None:
    raw = [(b"x-forwarded-for", b"192.0.2.66"), (b"forwarded", b"for=203.0.113.7"), (b"x-real-ip", b"192.0.2.66")]
    assert Proxies.parse(TRUSTED, "Forwarded").client_address(PROXY, raw) == "203.0.113.7"
    assert Proxies.parse(TRUSTED, "X-Forwarded-For").client_address(PROXY, raw) == "192.0.2.66"


@pytest.mark.parametrize(
    ("peer", "expected"),
    [("::ffff:203.0.113.7", "203.0.113.7"), ("fe80::1%eth0", "fe80::1"), ("2001:DB8::0:1", "2001:db8::1"),
     (None, "unix"), ("", "unix"), ("testclient", "testclient")],
)  # fmt: skip
def test_without_a_proxy_the_address_is_the_peers(peer: str | None, expected: str) -> None:
    assert Proxies().client_address(peer, [(b"x-forwarded-for", b"192.0.2.66")]) == expected


def test_a_proxy_may_be_trusted_by_its_socket_or_by_its_ipv4_mapped_address() -> None:
    assert client("x-forwarded-for", "203.0.113.7", peer=None) == "203.0.113.7"
    assert client("x-forwarded-for", "203.0.113.7", peer="::ffff:10.0.0.1") == "203.0.113.7"
    assert client("x-forwarded-for", "203.0.113.7", peer="testclient") == "testclient"


@pytest.mark.parametrize(("header", "word"), [("x-forwarded-for", ""), ("forwarded", "for=")])
def test_hops_beyond_the_twentieth_are_not_looked_at(header: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = list[str]()

    def counted(text: str) -> address.IPAddress | None:
        looked_at.append(text)
        return parse_address(text)

    monkeypatch.setattr(address, "parse_address", counted)
    hops = [f"10.0.{number // 256}.{number % 256}" for number in range(10_000)]
    assert client(header, ",".join(word + hop for hop in hops)) == hops[-HOPS_MAX]
    assert len(looked_at) <= HOPS_MAX + 2


@given(
    st.sampled_from(HEADERS),
    st.lists(st.text('",;=\\ for[]:.0192\t_') | st.sampled_from(["for=192.0.2.66", "192.0.2.66"]), max_size=4),
    st.booleans(),
    st.text('",;=\\ for192.', max_size=20),
)
def test_what_a_client_sends_changes_nothing_of_what_its_proxy_appends(
    header: str, sent: list[str], own_line: bool, host: str
) -> None:
    quoted = host.replace("\\", "\\\\").replace('"', '\\"')
    appended = f'for=203.0.113.7;host="{quoted}", for=10.0.0.2' if header == "forwarded" else "203.0.113.7, 10.0.0.2"
    lines = [*sent, appended] if own_line else [",".join([*sent, appended])]
    assert client(header, *lines) == "203.0.113.7"


@given(st.text(), st.sampled_from(HEADERS))
def test_an_address_is_found_or_not_but_nothing_is_raised(text: str, header: str) -> None:
    raw = [(header.encode(), text.encode("latin-1", "replace"))]
    found = Proxies.parse(TRUSTED, header).client_address(PROXY, raw)
    assert str(ip_address(found)) == found


@pytest.mark.parametrize(
    ("given", "counted"),
    [("203.0.113.7", "203.0.113.7"), ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"), ("unix", "unix"),
     ("2001:db8:0:1::", "2001:db8:0:1::/64"), ("testclient", "testclient")],
)  # fmt: skip
def test_a_customers_ipv6_network_counts_as_one(given: str, counted: str) -> None:
    assert bucket(given) == counted


@pytest.mark.parametrize(
    ("given", "public"),
    [("9.9.9.9", True), ("2620:fe::9", True), ("127.0.0.1", False), ("::1", False), ("10.0.0.1", False),
     ("192.168.1.1", False), ("100.64.0.1", False), ("169.254.1.1", False), ("fd00::1", False), ("fe80::1", False),
     ("::ffff:10.0.0.1", False), ("unix", False)],
)  # fmt: skip
def test_a_proxy_in_front_of_everyone_has_no_public_address(given: str, public: bool) -> None:
    assert is_public(given) == public


@pytest.mark.parametrize(
    "network",
    ["10.0.0.1/8", "0.0.0.0/0", "::/0", "10.0.0.0/33", "*", "", "proxy.example", "::ffff:10.0.0.0/104", "Unix"],
)
def test_a_network_that_is_none_or_everyone_is_refused(network: str) -> None:
    with pytest.raises(ValueError, match=r"network|host bits"):
        Proxies.parse((network,), HEADERS[0])


def test_who_trusts_nobody_is_told_apart() -> None:
    assert not Proxies.parse((), None)
    assert Proxies.parse(("unix",), HEADERS[0])
    assert Proxies.parse(("192.0.2.1",), HEADERS[0])


def test_an_address_that_is_told_in_its_one_form_is_not_copied() -> None:
    for peer in (str("192.0.2." + str(7)), str("2001:db8::" + str(7))):
        assert Proxies().client_address(peer, []) is peer
