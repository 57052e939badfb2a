"""The data that may be published: one table for hub, publishers and clients, which all use ``encode_data``."""

import array
import dataclasses
import enum
import os
import subprocess
import sys
from collections import ChainMap, OrderedDict, namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType, SimpleNamespace
from uuid import UUID

import attrs
import httpx
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app import Client, Hub
from sse_app.errors import BadInput, InvalidData, TooDeep, TooLarge
from sse_app.payload import JSON_DEPTH, encode_data
from sse_app.testing import StreamingASGITransport
from sse_app.topics import TopicFilter

CET = timezone(timedelta(hours=1))
Point = namedtuple("Point", ["x", "y"])


class Text(str):
    pass


class Whole(int):
    pass


class Real(float):
    pass


class Kind(enum.StrEnum):
    ORDER = "order"


class OldKind(str, enum.Enum):  # noqa: UP042
    ORDER = "order"


class State(enum.Enum):
    PAID = "paid"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Item:
    price: Decimal
    at: datetime | None = None
    more: object = None


@attrs.define
class Row:
    number: int
    item: object = None


class Order(msgspec.Struct, rename="camel", tag="order"):
    order_number: int
    item: object = None


class User(pydantic.BaseModel):
    name: str
    since: date
    tags: set[str] = set()


class Names(pydantic.RootModel[list[str]]):
    pass


NOWHERE = "http://127.0.0.1:9"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ANN = User(name="ann", since=date(2026, 1, 31))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("hello", "hello"),
        ("", ""),
        ('{"a": 1}', '{"a": 1}'),
        ("é😀\n", "é😀\n"),
        (Text("as it is"), "as it is"),
        (Kind.ORDER, "order"),
        (OldKind.ORDER, "order"),
        (None, "null"),
        (True, "true"),
        (42, "42"),
        (2**70, "1180591620717411303424"),
        (1.5, "1.5"),
        ({"number": 42}, '{"number":42}'),
        ({"é": "😀"}, '{"é":"😀"}'),
        ([1, 2.5, None, True], "[1,2.5,null,true]"),
        ([Text("t"), Whole(7), Real(0.5), Kind.ORDER, OldKind.ORDER, Level.HIGH], '["t",7,0.5,"order","order",3]'),
        (State.PAID, '"paid"'),
        ({State.PAID: State.PAID}, '{"paid":"paid"}'),
        (("a", ("b",)), '["a",["b"]]'),
        (Point(1, 2), "[1,2]"),
        ({3, 20, 1}, "[1,3,20]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        ({"b", 2, 1, ("c",), None, frozenset({"y", "x"})}, '[1,2,"b",["c"],["x","y"],null]'),
        (OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        (MappingProxyType({"a": 1}), '{"a":1}'),
        (ChainMap({"a": 1}, {"b": 2}), '{"b":2,"a":1}'),
        ({1: "one", 2.5: "x", Level.HIGH: 3}, '{"1":"one","2.5":"x","3":3}'),
        ({UUID(int=1): 1}, '{"00000000-0000-0000-0000-000000000001":1}'),
        ({date(2026, 1, 31): 1}, '{"2026-01-31":1}'),
        (NOON, '"2026-01-31T12:00:00Z"'),
        (NOON.astimezone(CET), '"2026-01-31T13:00:00+01:00"'),
        (datetime(2026, 1, 31, 12, 0, 0, 5), '"2026-01-31T12:00:00.000005"'),  # noqa: DTZ001
        ([date(2026, 1, 31), time(12, 30)], '["2026-01-31","12:30:00"]'),
        (timedelta(days=1, seconds=5), '"P1DT5S"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        ({"price": Decimal("1.10")}, '{"price":"1.10"}'),
        (Decimal("1e999"), '"1E+999"'),
        (Item(Decimal("9.90"), NOON), '{"price":"9.90","at":"2026-01-31T12:00:00Z","more":null}'),
        ([Row(1, Row(2))], '[{"number":1,"item":{"number":2,"item":null}}]'),
        (Order(7, {"b", "a"}), '{"type":"order","orderNumber":7,"item":["a","b"]}'),
        (Order(7, ANN), '{"type":"order","orderNumber":7,"item":{"name":"ann","since":"2026-01-31","tags":[]}}'),
        (Order(7, State.PAID), '{"type":"order","orderNumber":7,"item":"paid"}'),
        (ANN, '{"name":"ann","since":"2026-01-31","tags":[]}'),
        ({"users": (ANN,)}, '{"users":[{"name":"ann","since":"2026-01-31","tags":[]}]}'),
        (Item(Decimal(1), None, [ANN]).more, '[{"name":"ann","since":"2026-01-31","tags":[]}]'),
        (Names(["ann"]), '["ann"]'),
    ],
    ids=repr,
)
def test_a_text_goes_out_as_it_is_and_all_else_as_json(data: object, text: str) -> None:
    assert encode_data(data) == text


def numbers() -> Iterator[int]:
    yield 1


async def many() -> AsyncIterator[int]:
    yield 1


class Broken:
    def model_dump(self, mode: str) -> object:
        raise ValueError("no")


class Stranger:
    pass


def nested(depth: int) -> object:
    return [] if depth == 1 else [nested(depth - 1)]


def circle() -> object:
    inner: list[object] = []
    inner.append({"inner": inner})
    return inner


REFUSED: list[tuple[str, Callable[[], object], type[BadInput], str]] = [
    ("bytes", lambda: b"secret", InvalidData, r"of type bytes cannot be published: .* data\.decode\(\)"),
    ("bytes inside", lambda: {"a": [b"secret"]}, InvalidData, r"decode\(\)"),
    ("a bytearray", lambda: bytearray(b"secret"), InvalidData, r"decode\(\)"),
    ("a memoryview", lambda: [memoryview(b"secret")], InvalidData, r"decode\(\)"),
    ("bytes in a Struct", lambda: Order(1, b"secret"), InvalidData, r"decode\(\)"),
    ("bytes in a dataclass", lambda: Item(Decimal(1), None, b"secret"), InvalidData, r"decode\(\)"),
    ("NaN", lambda: float("nan"), InvalidData, "None or a str"),
    ("Infinity inside", lambda: [{"x": float("-inf")}], InvalidData, "None or a str"),
    ("NaN in a Struct", lambda: Order(1, float("nan")), InvalidData, "None or a str"),
    ("NaN in a dataclass", lambda: Item(Decimal(1), None, float("nan")), InvalidData, "None or a str"),
    ("an infinite Decimal", lambda: [Decimal("-inf")], InvalidData, "None or a str"),
    ("a NaN Decimal", lambda: Decimal("nan"), InvalidData, "None or a str"),
    ("a generator", numbers, InvalidData, r"list\(data\)"),
    ("a range inside", lambda: {"x": range(3)}, InvalidData, r"list\(data\)"),
    ("views of a dict", lambda: {"secret": 1}.keys(), InvalidData, r"list\(data\)"),
    ("an async generator", many, InvalidData, "async for"),
    ("a class", lambda: Item, InvalidData, "call it"),
    ("a function", lambda: numbers, InvalidData, "call it"),
    ("what numpy's look like", lambda: array.array("d", [1.0]), InvalidData, r"tolist\(\)"),
    ("an object", Stranger, InvalidData, "tests.test_payload.Stranger cannot .* dataclass"),
    ("an object inside", lambda: [SimpleNamespace(secret=1)], InvalidData, "SimpleNamespace cannot .* dataclass"),
    ("an object in a Struct", lambda: Order(1, Stranger()), InvalidData, "Stranger"),
    ("a complex number", lambda: 1j, InvalidData, "complex"),
    ("an exception", lambda: ValueError("secret"), InvalidData, "ValueError"),
    ("a lone surrogate", lambda: "secret\ud800", InvalidData, "surrogate"),
    ("a lone surrogate inside", lambda: {"x": ["secret\udfff"]}, InvalidData, "surrogate"),
    ("a lone surrogate in a key", lambda: {"secret\udfff": 1}, InvalidData, "surrogate"),
    ("a tuple as a key", lambda: {("secret",): 1}, InvalidData, "keys"),
    ("None as a key", lambda: {None: "secret"}, InvalidData, "keys"),
    ("True as a key", lambda: {True: "secret"}, InvalidData, "keys"),
    ("bytes as a key", lambda: {b"secret": 1}, InvalidData, r"decode\(\)"),
    ("NaN as a key", lambda: {float("nan"): 1}, InvalidData, "None or a str"),
    ("keys that JSON makes the same", lambda: {1: "secret", "1": 2}, InvalidData, "the same in JSON"),
    ("thousands of digits", lambda: 10**5000, InvalidData, "could not be made JSON"),
    ("what cannot say what it is", Broken, InvalidData, "could not be made JSON"),
    ("a circle", circle, TooDeep, f"at most {JSON_DEPTH} deep"),
    ("too deep", lambda: nested(JSON_DEPTH + 1), TooDeep, f"at most {JSON_DEPTH} deep"),
    ("far too deep", lambda: nested(500), TooDeep, f"at most {JSON_DEPTH} deep"),
]


@pytest.mark.parametrize(("make", "error", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_has_no_one_form_in_json_is_refused_in_words(
    make: Callable[[], object], error: type[BadInput], text: str
) -> None:
    with pytest.raises(error, match=text) as refused:
        encode_data(make())
    assert "secret" not in str(refused.value)


def test_a_forgotten_await_is_named() -> None:
    async def load() -> int:
        return 1

    forgotten = load()
    with pytest.raises(InvalidData, match=r"coroutine .* await it"):
        encode_data({"order": forgotten})
    forgotten.close()


def test_a_circle_through_a_class_of_msgspec_is_too_deep_as_well() -> None:
    order = Order(1)
    order.item = order
    with pytest.raises(TooDeep):
        encode_data(order)


def test_the_error_of_a_class_that_cannot_say_what_it_is_is_kept() -> None:
    with pytest.raises(InvalidData) as refused:
        encode_data(Broken())
    assert str(refused.value.__cause__) == "no"


def test_json_may_be_nested_so_deep_and_no_deeper() -> None:
    assert encode_data(nested(JSON_DEPTH)) == "[" * JSON_DEPTH + "]" * JSON_DEPTH


@pytest.mark.parametrize("data", ["x" * 11, "é" * 6, ["x" * 7], {"x": "é" * 2 + "x"}])
def test_the_bound_is_of_bytes_and_holds_for_text_and_json(data: object) -> None:
    size = len(encode_data(data).encode())
    assert encode_data(data, size)
    with pytest.raises(TooLarge, match=f"at most {size - 1} bytes"):
        encode_data(data, size - 1)


def test_a_set_is_the_same_text_in_every_process() -> None:
    """A retry with the same key from another process has to carry the same data."""
    source = "from sse_app.payload import encode_data; print(encode_data({'users': set(map(str, range(50)))}))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(JSON.filter(lambda data: not isinstance(data, str)))
def test_what_json_has_comes_back_as_it_was(data: object) -> None:
    assert msgspec.json.decode(encode_data(data)) == data


@pytest.mark.parametrize("data", [ANN, {"at": NOON, "tags": {"b", "a"}}, None, Text("x"), [Decimal("1.10")]], ids=repr)
async def test_a_client_publishes_what_a_hub_does(data: object) -> None:
    async with (
        Hub() as hub,
        StreamingASGITransport(hub.app) as transport,
        httpx.AsyncClient(transport=transport) as http,
        Client("http://localhost", http=http) as client,
    ):
        await hub.publish(data)
        await client.publish(data)
        first, second = await hub.broker.newest(2, TopicFilter(), None)
        assert first.event.data == second.event.data == encode_data(data)
