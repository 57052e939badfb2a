"""Every error of sse-app, in one tree.

    SSEAppError
    ├── BadInput (ValueError)          the caller's mistake: an HTTP 4xx
    │   ├── InvalidEvent               an event type or field that cannot go on the wire
    │   │   ├── ReservedEvent          a type that only the hub itself may send
    │   │   └── InvalidData            an object that is no text and has no form in JSON
    │   ├── InvalidTopic               a topic or topic filter against the rules
    │   │   └── TooManyTopics
    │   ├── InvalidClient              a client name against the rules
    │   ├── InvalidSince               ``last``, ``since`` or ``after`` not as described
    │   ├── InvalidIdempotencyKey
    │   ├── KeyReused                  an Idempotency-Key seen with another publication
    │   ├── UnknownParameter           a parameter that looks like a misspelt one
    │   ├── InvalidParameter           a number that a parameter may not have, or one that is missing
    │   ├── InvalidBody                a body that is not what its headers say
    │   │   ├── EmptyBody
    │   │   ├── InvalidJSON
    │   │   ├── InvalidUTF8
    │   │   ├── InvalidBatch           a batch that is no array of events
    │   │   └── TooDeep
    │   ├── TooLarge
    │   ├── TooSlow                    a body that did not arrive in time
    │   ├── UnsupportedType
    │   ├── UnsupportedEncoding
    │   ├── RepeatedHeader             a header twice that may come once
    │   ├── BadHost                    Host missing, doubled or malformed
    │   │   └── UnknownHost            a Host that this server does not answer to
    │   ├── UnsafeUpgrade              an upgrade offered with a body, on a server that may misread it
    │   ├── TokenInURL                 a credential in a URL, where logs and histories keep it
    │   ├── TopicRequired              a publication without a topic, on a hub where each has one
    │   ├── InvalidTicketRequest       a request for a ticket with an unknown member or a wrong value
    │   ├── InvalidRevocation          a revocation of nothing, or of two things at once
    │   ├── NoSuchClient               no open stream has that name
    │   ├── Vetoed                     a publication that the app's before_publish refused
    │   ├── Forbidden                  a request that this caller may not make
    │   │   ├── BadOrigin              a page of another origin
    │   │   ├── PreflightRefused       a page of an allowed origin that asks for more than it may send
    │   │   └── InsufficientScope      a credential that does not grant it
    │   ├── Unauthorized               no credential, or a wrong publish key
    │   │   ├── InvalidToken           a credential that does not count, for whatever reason
    │   │   └── InvalidTicket          a ticket that does not count, for whatever reason
    │   └── TooManyRequests            a limit was reached; the text says which
    │       └── Blocked                an administrator keeps this caller out for a while
    ├── Unavailable                    the hub's own trouble: an HTTP 503, try again later
    │   ├── Draining
    │   ├── Overloaded
    │   ├── KeysUnavailable            the keys of an issuer of tokens could not be fetched for too long
    │   ├── AuthorizeFailed            the app's authorize raised, or took too long
    │   ├── HubNotStarted              the hub was never started (a missing line in the app), or has stopped
    │   └── BrokerError                the log cannot take or give publications just now
    │       ├── BrokerUnavailable      its server cannot be reached; nothing was published
    │       ├── LogUnavailable         its file cannot be read or written; nothing was published
    │       ├── LogFull                there is no room for the publication; nothing was published
    │       └── OutcomeUnknown         the log's answer was lost: the publication may be in the log or not
    ├── ConfigError (ValueError)       a setting with a wrong value: stops the start
    ├── Closed (RuntimeError)          a client or publisher that was used after its end
    ├── ClientError                    of ``sse_app.client``, where it is raised; no HTTP status
    │   ├── InvalidURL (ValueError)    a URL that no hub can have
    │   ├── Refused                    the hub refused, and would refuse the same request again
    │   ├── Unreachable                no usable answer in the time allowed
    │   └── Gap                        events that this listener can no longer get
    ├── BenchError                     of ``sse-app bench``; no HTTP status
    │   ├── BenchRefused (ValueError)  a load that is unsafe or impossible
    │   └── BenchFailed                a server under load that did not start, connect or finish
    └── DoctorError                    of ``sse-app doctor``; no HTTP status
        ├── DoctorRefused (ValueError) an address or option that cannot be examined
        ├── DoctorFailed               nothing answers there, so nothing could be checked
        └── NotChecked                 one check that could not be done, and why

The HTTP status and code of each error stand in one table, in ``web/problems.py``. Texts never repeat what the caller
sent.
"""


class SSEAppError(Exception):
    """The root of the tree. ``str(error)`` says what, why and what to do next."""


class BadInput(SSEAppError, ValueError):
    """The caller's mistake; nothing was published."""


class InvalidEvent(BadInput):
    pass


class ReservedEvent(InvalidEvent):
    pass


class InvalidData(InvalidEvent):
    pass


class InvalidTopic(BadInput):
    pass


class TooManyTopics(InvalidTopic):
    pass


class InvalidClient(BadInput):
    pass


class InvalidSince(BadInput):
    pass


class InvalidIdempotencyKey(BadInput):
    pass


KEY_REUSED = "This Idempotency-Key came with another publication before; use a new key for a new one."


class KeyReused(BadInput):
    pass


class UnknownParameter(BadInput):
    pass


class InvalidParameter(BadInput):
    pass


class InvalidBody(BadInput):
    pass


class EmptyBody(InvalidBody):
    pass


class InvalidJSON(InvalidBody):
    pass


class InvalidUTF8(InvalidBody):
    pass


class InvalidBatch(InvalidBody):
    pass


class TooDeep(InvalidBody):
    pass


class TooLarge(BadInput):
    pass


class TooSlow(BadInput):
    pass


class UnsupportedType(BadInput):
    pass


class UnsupportedEncoding(BadInput):
    pass


class RepeatedHeader(BadInput):
    pass


class BadHost(BadInput):
    pass


class UnknownHost(BadHost):
    pass


class UnsafeUpgrade(BadInput):
    pass


class TokenInURL(BadInput):
    pass


class TopicRequired(BadInput):
    pass


class InvalidTicketRequest(BadInput):
    pass


class InvalidRevocation(BadInput):
    pass


class NoSuchClient(BadInput):
    pass


class Vetoed(BadInput):
    """Raised by an app's ``before_publish`` to refuse a publication; its text is the answer."""


class Forbidden(BadInput):
    pass


class BadOrigin(Forbidden):
    pass


class PreflightRefused(Forbidden):
    pass


class InsufficientScope(Forbidden):
    pass


class Unauthorized(BadInput):
    pass


# Of every InvalidToken: who tries credentials learns of none of them why it does not count.
INVALID = (
    "This credential does not count here: it has expired, was taken back, is not for this hub, or was not signed for"
    " it. Get a new one."
)


class InvalidToken(Unauthorized):
    """A credential that does not count. ``reason`` says why, for the log and the counters, never for an answer."""

    def __init__(self, text: str, reason: str = "invalid") -> None:
        super().__init__(text)
        self.reason = reason


class InvalidTicket(Unauthorized):
    """A ticket that does not count. ``contested`` is its hash when more than one party used it, which ends it."""

    def __init__(self, text: str, contested: str | None = None) -> None:
        super().__init__(text)
        self.contested = contested


class TooManyRequests(BadInput):
    """A limit was reached. ``wait`` is after how many seconds the same request may pass."""

    def __init__(self, text: str, wait: float) -> None:
        super().__init__(text)
        self.wait = wait


class Blocked(TooManyRequests):
    pass


class Unavailable(SSEAppError):
    """The hub cannot do it now, through no mistake of the caller: the same request may succeed later."""


class Draining(Unavailable):
    pass


class Overloaded(Unavailable):
    pass


class KeysUnavailable(Unavailable):
    pass


class AuthorizeFailed(Unavailable):
    pass


class HubNotStarted(Unavailable):
    pass


class BrokerError(Unavailable):
    """The log cannot take or give publications just now. Not an OSError, which streams take for a peer that is gone."""


class BrokerUnavailable(BrokerError):
    pass


class LogUnavailable(BrokerError):
    pass


class LogFull(BrokerError):
    pass


class OutcomeUnknown(BrokerError):
    """The publication may be in the log or not. Publishing it again with the same Idempotency-Key is safe."""


class ConfigError(SSEAppError, ValueError):
    """A setting with a wrong value; the text names the setting and its range, never the value of a secret."""


class Closed(SSEAppError, RuntimeError):
    """A client or publisher was used after its end; nothing was sent."""


class ClientError(SSEAppError):
    """The base of the errors that ``sse_app.client`` raises."""


class InvalidURL(ClientError, ValueError):
    """A URL that no hub can have."""


class Refused(ClientError):
    """A refusal by the hub. ``status`` is its HTTP status, ``code`` the problem's code (``docs/http-api.md``), or
    ``http_error`` when another server answered, ``detail`` a sentence.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({status} {code})")
        self.status, self.code, self.detail = status, code, detail


class Unreachable(ClientError):
    """No usable answer in the time allowed; ``__cause__`` is the last failure.

    ``idempotency_key`` is that of a publication, given or made by the client; None for a stream. The publication may be
    in the log; publishing it again with this key is safe.
    """

    def __init__(self, text: str, idempotency_key: str | None = None) -> None:
        super().__init__(text)
        self.idempotency_key = idempotency_key


class Gap(ClientError):
    """Publications between ``requested`` and ``oldest`` that a listener will not get.

    ``oldest`` is the oldest publication that the log still holds, ``top`` its newest, ``id`` the position from which
    the stream goes on, ``reason`` a reason of ``docs/http-api.md``. ``requested`` is None for a malformed position.
    """

    def __init__(self, reason: str, *, id: str, requested: str | None, oldest: str, top: str) -> None:
        after = "a position that is malformed" if requested is None else requested
        super().__init__(f"Events after {after} are lost ({reason}); it goes on behind {id}.")
        self.reason, self.id, self.requested, self.oldest, self.top = reason, id, requested, oldest, top


class BenchError(SSEAppError):
    """A load that was not measured."""


class BenchRefused(BenchError, ValueError):
    """The load asked for is unsafe or impossible; nothing was connected."""


class BenchFailed(BenchError):
    """The server under load did not start, could not be subscribed to, or did not finish in time."""


class DoctorError(SSEAppError):
    """Something was not examined."""


class DoctorRefused(DoctorError, ValueError):
    """The address or an option makes no sense; nothing was connected."""


class DoctorFailed(DoctorError):
    """Nothing that speaks HTTP answers at the address; nothing could be checked."""


class NotChecked(DoctorError):
    """One check could not be done; the text says why. The others go on."""
