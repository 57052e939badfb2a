"""Entries of one version of the hub, read by another: nothing is silence, and nothing stops a node."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_app.brokers.formats import VERSION, NotUnderstood, check_body
from sse_app.brokers.nats import entries as nats_entries
from sse_app.brokers.redis import entries as redis_entries
from sse_app.brokers.sqlite import entries as sqlite_entries
from sse_app.events import Event
from sse_app.publication import Draft, Position, Publication

ROUNDS = 1_000_000 if settings().max_examples >= 2_000 else 3_000

DRAFT = Draft(Event("a\nb é", "tick"), ("t", "u/v"), frozenset({"c-1"}), frozenset({"c-2"}), is_json=True)
DEEP = b"[" * 100_000 + b"]" * 100_000  # Python 3.12 and 3.13 go ten times as deep as 3.11


def read_redis(data: bytes) -> Publication:
    return redis_entries.publication_of((b"0-7", [b"v1", data]), "e", 9.0)


def read_nats(data: bytes) -> Publication:
    return nats_entries.publication_of(nats_entries.Message(7, 1.5, data), "e")


def packed(**fields: Any) -> bytes:
    return b"e 1500000 2 1 " + msgspec.msgpack.encode({"v": VERSION, "body": b"data: x\n\n", **fields})


def texted(**fields: Any) -> bytes:
    return msgspec.json.encode({"v": VERSION, "data": "x", **fields})


Read = Callable[[bytes], Publication]
FORMATS: dict[str, tuple[Read, Callable[..., bytes], bytes]] = {
    "redis": (read_redis, packed, b"e 1500000 2 1 " + redis_entries.envelope(DRAFT)),
    "nats": (read_nats, texted, nats_entries.envelope(DRAFT)),
}
each_format = pytest.mark.parametrize(("read", "made", "good"), FORMATS.values(), ids=FORMATS)


@each_format
def test_a_field_that_is_not_known_is_ignored(read: Read, made: Callable[..., bytes], good: bytes) -> None:
    found = read(made(new={"deep": [1, 2]}, topics=["t"]))
    assert not found.lost
    assert (found.event.data, found.topics, found.is_json) == ("x", ("t",), False)


@each_format
@pytest.mark.parametrize("fields", [{"crit": ["private"], "private": True}, {"crit": ["private"]}, {"v": VERSION + 1}])
def test_what_must_not_be_ignored_is_lost(
    read: Read, made: Callable[..., bytes], good: bytes, fields: dict[str, Any]
) -> None:
    found = read(made(topics=["t"], to=["c"], **fields))
    assert found.lost
    assert (found.position, found.topics, found.to, found.body) == (Position("e", 7), (), frozenset(), b"")


@each_format
@pytest.mark.parametrize(
    "fields",
    [
        {"v": 0},
        {"v": -1},
        {"v": 2**64 - 1},
        {"v": None},
        {"v": "2"},
        {"v": True},
        {"crit": None},
        {"crit": "private"},
        {"topics": ["a\nid: 1"]},
        {"topics": ["a\r"]},
        {"topics": [1]},
        {"to": "c"},
    ],
)
def test_what_breaks_the_rules_is_lost(
    read: Read, made: Callable[..., bytes], good: bytes, fields: dict[str, Any]
) -> None:
    assert read(made(**fields)).lost


@each_format
def test_types_and_topics_that_only_another_version_allows_are_read(
    read: Read, made: Callable[..., bytes], good: bytes
) -> None:
    for kind in ("welcome", "می\u200cخواهم", "x" * 500):
        event = {"event": kind} if read is read_nats else {"type": kind, "body": body_of(kind)}
        found = read(made(topics=["a//b", "x" * 5_000, "\u202e"], **event))
        assert (found.lost, found.type, found.event.type) == (False, kind, kind)


def body_of(kind: str) -> bytes:
    return Draft(Event("x", kind)).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"e 1500000 2 1 ",
        b"e " + b"9" * 400 + b" 2 1 " + redis_entries.envelope(DRAFT),
        b"e " + b"9" * 5_000 + b" 2 1 " + redis_entries.envelope(DRAFT),
        b"e -1 2 1 " + redis_entries.envelope(DRAFT),
        "e \u0661 2 1 ".encode() + redis_entries.envelope(DRAFT),
        b"e 1 " + b"9" * 400 + b" 1 " + redis_entries.envelope(DRAFT),
        b"e 1500000 2 1 " + b"\x91" * 100_000,
        b"e 1500000 2 1 \x83\xa1v\x02\xa4body\xc4\x09data: x\n\n\xa3new" + b"\x91" * 100_000 + b"\x90",
        packed(v=1),
        packed(body="data: x\n\n"),
    ],
)
def test_an_entry_of_redis_that_is_none_is_lost(data: bytes) -> None:
    assert read_redis(data).lost


@pytest.mark.parametrize(
    "data", [b"", DEEP, b'{"v":2,"data":"x","new":' + DEEP + b"}", b"hello", b'{"v":2}', texted(event="a\nid: 7")]
)
def test_a_message_of_nats_that_is_none_is_lost(data: bytes) -> None:
    assert read_nats(data).lost


@pytest.mark.parametrize("text", ["", "x", "a\nb", "\n", "\n\n", "a\r\nb\r", "\0", "\u2028", "data: x", "id: 7", ":"])
@pytest.mark.parametrize("kind", ["message", "tick", "é"])
def test_every_body_that_is_written_can_be_read(text: str, kind: str) -> None:
    check_body(kind, Draft(Event(text, kind)).encode())


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("message", b""),
        ("message", b"\n\n"),
        ("message", b"data: x"),
        ("message", b"data: x\n"),
        ("message", b"data: x\n\n\n"),
        ("message", b"data: x\n\ndata: y\n\n"),
        ("message", b"data: x\r\ndata: y\n\n"),
        ("message", b"data: x\nid: 9\n\n"),
        ("message", b"id: 9\ndata: x\n\n"),
        ("message", b"retry: 1\n\n"),
        ("message", b"event: tick\ndata: x\n\n"),
        ("message", b"data: \xff\n\n"),
        ("tick", b"data: x\n\n"),
        ("tick", b"event: tock\ndata: x\n\n"),
        ("tick", b"event: tick\n\n"),
        ("a\nb", b"event: a\nb\ndata: x\n\n"),
        ("", b"event: \ndata: x\n\n"),
        ("\ud800", b"data: x\n\n"),
    ],
)
def test_a_body_that_is_not_one_block_of_its_type_is_not_read(kind: str, body: bytes) -> None:
    with pytest.raises((NotUnderstood, UnicodeEncodeError)):
        check_body(kind, body)


@each_format
def test_an_entry_says_that_its_data_is_json_and_has_the_digest_of_version_1(
    read: Read, made: Callable[..., bytes], good: bytes
) -> None:
    found = read(good)
    assert (found.event.data, found.type, found.topics) == ("a\nb é", "tick", ("t", "u/v"))
    assert (found.to, found.exclude, found.is_json, found.lost) == (DRAFT.to, DRAFT.exclude, True, False)


# --- any bytes ---


def assert_total(read: Read, data: bytes) -> bool:
    """Whatever it is, it becomes a publication that can be sent and described. True if it was understood."""
    found = read(data)
    found.summary()
    assert found.position == Position("e", 7)
    if found.lost:
        return False
    assert found.event.id == "e-7"
    return True


def mutated(chance: random.Random, good: Sequence[bytes]) -> bytes:
    data = bytearray(chance.choice(good))
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                data[place:place] = chance.randbytes(chance.randrange(8))
            case 2:
                del data[place : place + chance.randrange(9)]
            case 3:
                other = chance.choice(good)
                data[place:] = other[chance.randrange(len(other)) :]
            case _:
                data[place:place] = data[place : place + 20] * chance.choice([1, 2, 300])
    return bytes(data)


@each_format
def test_no_bytes_break_a_decoder(read: Read, made: Callable[..., bytes], good: bytes) -> None:
    chance = random.Random(20)
    seeds = [good, made(), made(crit=["x"], x=1), made(topics=["a", "b"], new=[{"k": None}])]
    understood = sum(assert_total(read, mutated(chance, seeds)) for _ in range(ROUNDS))
    assert 0 < understood < ROUNDS, "both ways were gone"


GOOD_ROW = sqlite_entries.Row(7, 1.5, "tick", "t\nu/v", "c-1", "c-2", DRAFT.encode(), 1, None, None)


def test_a_row_is_read_as_it_was_written() -> None:
    found = sqlite_entries.publication_of(GOOD_ROW, "e")
    assert (
        found
        == read_redis(b"e 1500000 2 1 " + redis_entries.envelope(DRAFT))
        == read_nats(nats_entries.envelope(DRAFT))
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"version": VERSION + 1},
        {"version": 0},
        {"crit": "private"},
        {"topics": "a\rid: 1"},
        {"time": float("inf")},
        {"time": 1e300},
        {"time": -1.0},
        {"body": b""},
        {"body": b"data: x\n\nid: 1\n\n"},
    ],
)
def test_a_row_that_cannot_be_shown_is_lost(fields: dict[str, Any]) -> None:
    found = sqlite_entries.publication_of(GOOD_ROW._replace(**fields), "e")
    assert (found.lost, found.position, found.topics) == (True, Position("e", 7), ())
    found.summary()


def mutated_row(chance: random.Random) -> sqlite_entries.Row:
    """The good row, with up to three columns that STRICT tables allow as well."""
    odd: dict[str, Sequence[Any]] = {
        "time": (0.0, -0.5, 1e11, 1e300, float("inf"), float("-inf")),
        "event_type": ("message", "", "a\nb", "tick\r", "\0"),
        "topics": ("", "\n", "a\n\nb", "a\rb", "x" * 9_000),
        "to": ("", "\n", "c"),
        "exclude": ("", "\n", "c"),
        "json": (None, 0, -(2**63)),
        "version": (None, VERSION, VERSION + 1, 0, -1, 2**63 - 1),
        "crit": (None, "", "\n", "private", "json"),
    }
    fields: dict[str, Any] = {"body": mutated(chance, [GOOD_ROW.body])} if chance.random() < 0.5 else {}
    for name in chance.sample(sorted(odd), chance.randint(0, 3)):
        fields[name] = chance.choice(odd[name])
    return GOOD_ROW._replace(**fields)


def test_no_row_breaks_a_decoder() -> None:
    chance, understood = random.Random(20), 0
    for _ in range(ROUNDS):
        found = sqlite_entries.publication_of(mutated_row(chance), "e")
        found.summary()
        assert found.position == Position("e", 7)
        assert found.lost or found.event.id == "e-7"
        understood += not found.lost
    assert 0 < understood < ROUNDS, "both ways were gone"


@given(st.binary(max_size=200))
def test_no_binary_breaks_a_decoder(data: bytes) -> None:
    for read in (read_redis, read_nats):
        assert_total(read, data)
        assert_total(read, b"e 1500000 2 1 " + data)
