"""Drafts, positions and publications: an event on its way from its publisher through the log to the subscribers.

data -> Draft.compose -> Broker.publish(draft) -> Position -> Publication, announced to those whom it is for
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Self, TypedDict

from sse_app.characters import REFUSED, acceptable
from sse_app.errors import (
    BadInput,
    ConfigError,
    InvalidClient,
    InvalidData,
    InvalidIdempotencyKey,
    InvalidTopic,
    TopicRequired,
)
from sse_app.events import Event, EventDecoder, check_type, encode
from sse_app.payload import check_json, encode_data
from sse_app.topics import TopicFilter, check_topics

_POSITION = re.compile(r"([0-9a-z]{1,32})-(0|[1-9][0-9]{0,17})")
_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
USER_MAX = 255  # characters
_SECRET = re.compile(r"[\x21-\x7e]+")

Names = str | Iterable[str] | None  # of topics or clients: one, several, or not given

Durability = Literal["none", "log", "fsync"]  # of the log: in memory; survives the process; survives the machine


class PublishOptions(TypedDict, total=False):
    """The options of everyone who publishes, beside the data: those of ``Draft.compose``."""

    topic: Names
    event: str
    to: Names
    exclude: Names
    idempotency_key: str | None


class Position(NamedTuple):
    """The place of a publication in the log; 0 is the place before the first.

    On the wire ``<epoch>-<offset>``: lower-case letters, digits and one ``-``, which browsers may send as Last-Event-ID
    across origins without a preflight (Fetch standard, CORS-safelisted request-header value).
    """

    epoch: str
    offset: int

    @classmethod
    def parse(cls, raw: bytes) -> "Position | None":
        """Return the position that is written as an SSE id or in a Last-Event-ID header, None for anything else."""
        match = _POSITION.fullmatch(raw.decode("ascii", "replace"))
        return match and cls(match[1], int(match[2]))

    def next(self) -> "Position":
        return Position(self.epoch, self.offset + 1)

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def names(parameter: str, given: Names, error: type[BadInput]) -> tuple[str, ...]:
    """Return the names that a parameter was given, none when it was not. Raises ``error`` for what are no names."""
    if given is None:
        return ()
    if isinstance(given, str):
        return (str.__str__(given),)  # str() of an enum is its name
    if isinstance(given, Iterable) and not isinstance(given, Mapping):
        found = list(given)
        if all(isinstance(name, str) for name in found):
            if isinstance(given, set | frozenset):
                found.sort()  # a retry from another process is the same publication
            return tuple(map(str.__str__, found))
    raise error(f"{parameter} is a str, or several of them in a list.")


def recipients(parameter: str, given: Names, error: type[BadInput]) -> tuple[str, ...]:
    """Return ``names`` of a parameter that limits a publication. Raises ``error`` for an empty list too, since without
    the limit a publication is for everyone.
    """
    if given is None:
        return ()
    found = names(parameter, given, error)
    if not found:
        raise error(f"{parameter} is empty, which is nobody; leave it out to reach everyone.")
    return found


def check_idempotency_key(key: str) -> str:
    """Return a publication's idempotency key, checked. Raises InvalidIdempotencyKey."""
    if not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise InvalidIdempotencyKey("An idempotency key has 1 to 128 visible ASCII characters.")
    return str.__str__(key)


def check_publish_key(given: str | None) -> str | None:
    """Return the publishers' secret as it is sent: without the white space around it in a file or a variable, None when
    there is none. Raises ConfigError, whose text does not repeat the secret.
    """
    return _secret("publish_key", given)


def check_token(given: str | None) -> str | None:
    """Return a token as ``check_publish_key`` returns a key."""
    return _secret("token", given)


def _secret(name: str, given: str | None) -> str | None:
    secret = given.strip() if isinstance(given, str) else given
    if not secret:
        return None
    if not (isinstance(secret, str) and _SECRET.fullmatch(secret)):
        raise ConfigError(f"{name} is visible ASCII characters, without white space between them.")
    return secret


def check_client(name: str) -> str:
    """Return a client's name, checked. Raises InvalidClient."""
    if not (isinstance(name, str) and _CLIENT.fullmatch(name)):
        raise InvalidClient("A client name has 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return name


def check_user(name: str) -> str:
    """Return a user's name, checked. Raises InvalidClient."""
    fits = isinstance(name, str) and 0 < len(name) <= USER_MAX and acceptable(name)
    if not fits or any(map(str.isspace, name)):
        raise InvalidClient(f"A user name has 1 to {USER_MAX} characters without white space; {REFUSED}.")
    return str.__str__(name)


def check_recipient(name: str) -> str:
    """Return whom a publication may name, checked: a client ``tab-7``, all streams of a user ``@42``, or one of them
    ``tab-7@42``. A client's name has no @, so the first one separates. Raises InvalidClient.
    """
    if not (isinstance(name, str) and "@" in name):
        return check_client(name)
    client, _, user = name.partition("@")
    if client:
        check_client(client)
    check_user(user)
    return str.__str__(name)


def check_recipients(names: Iterable[str]) -> frozenset[str]:
    """Return the names of clients and users, each once. Raises InvalidClient, also for more than 1,000."""
    unique = frozenset(map(check_recipient, names))
    if len(unique) > 1_000:
        raise InvalidClient("At most 1,000 clients and users can be named.")
    return unique


class Envelope(NamedTuple):
    """All of a publication beside its data, checked: its event type, the topics it is on, the clients that may get it
    and those that may not. Drafts may share one.
    """

    event: str = "message"
    topics: tuple[str, ...] = ()
    to: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *, topic: Names = None, event: str = "message", to: Names = None, exclude: Names = None) -> Self:
        """Return the envelope of what a publisher gave. Raises BadInput."""
        return cls(
            check_type(event),
            check_topics(recipients("topic", topic, InvalidTopic)),
            check_recipients(recipients("to", to, InvalidClient)),
            check_recipients(names("exclude", exclude, InvalidClient)),
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """A publication that is checked and has no position yet, as every publisher hands it to the broker.

    Without ``topics`` it is for everyone. ``to`` limits it to these clients when there are any, ``exclude`` keeps it
    from those. Of drafts with the same ``idempotency_key`` one is appended. ``is_json``: the data is known to be JSON.
    Raises InvalidIdempotencyKey.
    """

    event: Event
    topics: tuple[str, ...] = ()
    to: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    idempotency_key: str | None = None
    is_json: bool = False
    _encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)  # no part of a copy

    def __post_init__(self) -> None:
        if self.idempotency_key is not None:
            # As a plain str: str() of an enum is its name.
            object.__setattr__(self, "idempotency_key", check_idempotency_key(self.idempotency_key))

    @classmethod
    def compose(
        cls,
        data: object,
        *,
        body_max: int | None = None,
        is_json: bool | None = None,
        topic: Names = None,
        event: str = "message",
        to: Names = None,
        exclude: Names = None,
        idempotency_key: str | None = None,
    ) -> Self:
        """Return the draft of what a publisher gave, checked. ``data`` is sent as it is when it is a str, else as JSON.
        It has ``body_max`` bytes at most; ``is_json`` tells that a str is JSON. Raises BadInput.
        """
        envelope = Envelope.of(topic=topic, event=event, to=to, exclude=exclude)
        as_json = not isinstance(data, str) if is_json is None else is_json
        return cls.enclose(encode_data(data, body_max), envelope, is_json=as_json, idempotency_key=idempotency_key)

    @classmethod
    def enclose(cls, text: str, envelope: Envelope, *, is_json: bool, idempotency_key: str | None = None) -> Self:
        """Return the draft of an encoded text in an envelope."""
        event, topics, to, exclude = envelope
        return cls(Event(text, event), topics, to, exclude, idempotency_key, is_json)

    def with_data(self, data: object) -> Self:
        """Return this draft with other data, which is sent as it is when it is a str, else as JSON. Raises InvalidData,
        TooDeep.
        """
        return replace(self, event=replace(self.event, data=encode_data(data)), is_json=not isinstance(data, str))

    def checked(self, body_max: int | None = None) -> Self:
        """Return this draft, of which anything may have been replaced, checked as ``compose`` does. Raises BadInput."""
        if not isinstance(self.event.data, str):
            raise InvalidData("The data of an event is a str; with_data() encodes other objects.")
        if self.is_json:
            check_json(self.event.data.encode())
        return self.compose(
            self.event.data,
            body_max=body_max,
            is_json=self.is_json,
            topic=self.topics or None,
            event=self.event.type,
            to=self.to or None,
            exclude=self.exclude,
            idempotency_key=self.idempotency_key,
        )

    def check_topic(self) -> None:
        """Raises TopicRequired unless it has a topic."""
        if not self.topics:
            raise TopicRequired(
                "This hub takes no publication without a topic, which would be for everyone (require_topic): give one."
            )

    def encode(self) -> bytes:
        """Return the event as it is stored and sent, without an id. Raises InvalidEvent."""
        if self._encoded is not None:
            return self._encoded
        event = self.event
        if event.id is not None or event.retry is not None:
            event = Event(event.data, event.type)
        return encode(event)

    def encoded(self) -> Self:
        """Return this draft with its event encoded already, for a large one that is made in a thread."""
        draft = replace(self)
        object.__setattr__(draft, "_encoded", self.encode())
        return draft


@dataclass(frozen=True, slots=True)
class Receipt:
    """The acknowledgement of a publication, which is in the log at ``position``, as safe as ``durable`` says.

    ``subscribers`` are those that get it on the hub that published it, by delivery or replay; None without a hub.
    """

    position: Position
    subscribers: int | None
    durable: Durability

    @property
    def id(self) -> str:
        """The id of the event on every stream."""
        return str(self.position)


class Audience(NamedTuple):
    """The ``names`` under which a publication's ``to`` and ``exclude`` may name these readers: those that the hub
    vouches for. ``client`` is the name that they gave themselves, which counts for ``exclude`` alone.

    Readers without a name see no publication that is limited to named clients.
    """

    names: tuple[str, ...] = ()
    client: str | None = None

    def sees(self, to: frozenset[str], exclude: frozenset[str]) -> bool:
        """Return True when a publication to these, and without those, is for these readers."""
        if self.client in exclude or not exclude.isdisjoint(self.names):
            return False
        return not to or not to.isdisjoint(self.names)


class Publication(NamedTuple):  # made for each entry that is read: a frozen dataclass would take 1 us more
    """An event with its topics and its position.

    ``body`` is the encoded event without its id, made once for all subscribers; a dialect adds the id. ``time`` is Unix
    time in seconds and never falls from one publication to the next. ``to`` limits it to these clients when there are
    any, ``exclude`` keeps it from those; both hold for replay too. ``is_json``: its data is known to be JSON.

    A ``lost`` publication takes the place of an entry of the log that this node cannot read. It has no body and no
    topics: every stream gets a gap there.
    """

    position: Position
    type: str
    topics: tuple[str, ...]
    body: bytes
    time: float
    to: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    is_json: bool = False
    lost: bool = False

    @property
    def event(self) -> Event:
        (event,) = EventDecoder().feed(self.body)
        return replace(event, id=str(self.position))

    def visible_to(self, audience: Audience | None) -> bool:
        """Return True when these readers may see it; None for an audience that sees everything."""
        return audience is None or not (self.to or self.exclude) or audience.sees(self.to, self.exclude)

    def reaches(self, topic_filter: TopicFilter, audience: Audience | None) -> bool:
        """Return True when it matches, and these readers may see it. A lost one is told to everyone."""
        return self.visible_to(audience) and (topic_filter.matches(self.topics) or self.lost)

    def summary(self, topic_filter: TopicFilter | None = None) -> dict[str, object]:
        """Return the publication without its data, as JSON types; with a filter, only those topics that it matches."""
        topics = self.topics if topic_filter is None else topic_filter.matched(self.topics)
        time = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"id": str(self.position), "topics": list(topics), "event": self.type, "time": time}
