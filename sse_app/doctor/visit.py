"""The requests and streams of one examination, through a hub's public URL."""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Self

import httpx

from sse_app.doctor.stream import WELCOME_SECONDS, Stream
from sse_app.errors import ConfigError, DoctorFailed, DoctorRefused, NotChecked
from sse_app.events import MEDIA_TYPE
from sse_app.publication import Position, check_publish_key, check_token

REQUEST_SECONDS = 15.0
TICKET_SECONDS = 60.0  # that a ticket's streams may last
ARRIVAL_SECONDS = 3.0  # for an event to arrive; a later one counts as held back


class Published(NamedTuple):
    """The hub's answer to a publication."""

    event_id: str
    subscribers: int


class Visit:
    """A hub under examination. Raises DoctorRefused for a ``url`` that is none, and for secrets that cannot be sent.

    url: the hub's base URL
    client, to: the name of our streams, and that by which a publication reaches them alone; "" for no such name
    topic: the topic that the checks publish on
    first: the stream that is open all the time, on a topic without publications
    blocked: the hub has our first stream open, and nothing of it arrives; a result of the first check
    cuts: the streams that ended without a bye
    """

    first: Stream

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        publish_key: str | None = None,
        origin: str | None = None,
        idle: float = 0,
    ) -> None:
        self.url = base_url(url)
        self.origin = None if origin is None else checked_origin(origin)
        self.idle = idle
        own = secrets.token_hex(8)
        self.client, self.topic = f"doctor-{own}", f"sse-app/doctor/{own}"
        self.to = self.client
        self.silent_topic = f"{self.topic}/silent"
        self.blocked = False
        self.cuts: list[Stream] = []
        self.epochs: set[str] = set()  # of the logs that answered so far
        self._bearer, self._publisher = _credentials(token, publish_key)
        try:
            self._http = httpx.AsyncClient(
                base_url=f"{self.url}/", timeout=REQUEST_SECONDS, headers={"User-Agent": "sse-app-doctor"}
            )
        except (ImportError, OSError, ValueError, httpx.InvalidURL):  # their texts may hold a password
            raise DoctorRefused(
                "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE or SSL_CERT_DIR cannot be followed."
            ) from None

    @property
    def has_token(self) -> bool:
        return bool(self._bearer)

    @property
    def shown(self) -> str:
        """The URL without user and password."""
        return str(self.url.copy_with(userinfo=b""))

    @property
    def own_origin(self) -> str:
        """The origin of pages that come from this address."""
        return f"{self.url.scheme}://{self.url.netloc.decode()}"

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def take_names(self) -> None:
        """Take names that our token vouches for, by which publications reach us alone. Without an answer, which the
        checks report, the names stay those of a hub that asks for no token.
        """
        if not self._bearer:
            return
        with suppress(NotChecked):
            grant = await self.get_json("grant")
            user, client = grant.get("user"), grant.get("client")
            if isinstance(client, str):
                own = self.client if self.client.startswith(client[:-1]) else f"{client[:-1]}{secrets.token_hex(6)}"
                self.client = own if client.endswith("*") else client
                self.to = self.client
            else:
                self.to = f"{self.client}@{user}" if isinstance(user, str) else ""

    @asynccontextmanager
    async def stream(
        self, topic: str = "", *, headers: Mapping[str, str] | None = None, last_event_id: str = "", ticket: str = ""
    ) -> AsyncIterator[Stream]:
        """Open a stream of the publications to ourselves, without compression unless ``headers`` ask for it; with a
        ticket, if there is one, in place of our token.
        """
        query = {"topic": topic or self.topic, "client": self.client}
        if last_event_id:
            query["last_event_id"] = last_event_id
        if ticket:
            query["ticket"] = ticket
        stream = Stream()
        reader = asyncio.create_task(self._read(stream, query, headers or {}))
        try:
            yield stream
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            if stream.cut:
                self.cuts.append(stream)
            if stream.welcome:
                self._note_epoch(str(stream.welcome["top"]))
        if not reader.cancelled():
            reader.result()

    async def _read(self, stream: Stream, query: Mapping[str, str], headers: Mapping[str, str]) -> None:
        own = {"Accept": MEDIA_TYPE, "Cache-Control": "no-store", "Accept-Encoding": "identity"}  # as EventSource
        bearer = {} if "ticket" in query else self._bearer
        endless = httpx.Timeout(REQUEST_SECONDS, read=None)
        try:
            async with self._http.stream(
                "GET", "events", params=query, headers={**own, **bearer, **headers}, timeout=endless
            ) as response:
                await stream.read(response)
            stream.end("")
        except httpx.HTTPError as error:
            stream.end(reason(error))

    def require_streams(self) -> None:
        """Raise NotChecked when no bytes of a stream arrive."""
        if self.blocked:
            raise NotChecked("nothing of a stream comes through; see buffering")

    def require_one_log(self) -> None:
        """Raise NotChecked when publications may go to one hub and streams come from another."""
        if len(self.epochs) > 1:
            raise NotChecked("several hubs with logs of their own answer; see log")

    async def opened(self, stream: Stream) -> httpx.Response:
        """Wait for the head of a stream. Raises NotChecked when none comes."""
        await stream.until(lambda: stream.response is not None, WELCOME_SECONDS)
        if stream.response is None:
            raise NotChecked(f"its stream had no answer within {WELCOME_SECONDS:g} s")
        return stream.response

    async def post(self, data: str, topic: str = "") -> httpx.Response:
        """Publish to ourselves alone. Raises httpx.HTTPError."""
        query = {"topic": topic or self.topic, **({"to": self.to} if self.to else {})}
        headers = {"Content-Type": "text/plain; charset=utf-8", **self._publisher}
        return await self._http.post("broadcast", params=query, content=data.encode(), headers=headers)

    async def publish(self, data: str, topic: str = "") -> Published:
        """Publish to ourselves alone. Raises NotChecked when it is refused."""
        try:
            answer = await self.post(data, topic)
        except httpx.HTTPError as error:
            raise NotChecked(f"publishing failed: {reason(error)}") from None
        if answer.status_code == 401:
            raise NotChecked("publishing needs the right key (--token-file, SSE_APP_TOKEN, or --publish-key)")
        if error_code(answer) == "insufficient_scope":
            raise NotChecked("the token does not grant publishing on sse-app/doctor/**")
        try:
            said = answer.raise_for_status().json()
            published = Published(str(said["id"]), int(said["subscribers"]))
        except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
            raise NotChecked(f"publishing was answered {named(answer)}") from None
        self._note_epoch(published.event_id)
        return published

    async def subscribed(self, topic: str) -> bool:
        """Return True when the hub has a stream of this topic open, as /stats says. Raises NotChecked."""
        filters = (await self.get_json("stats")).get("filters")
        if filters is None and self._bearer:
            raise NotChecked("the token does not show who is subscribed (stats: all)")
        if not isinstance(filters, list):
            raise NotChecked("/stats does not come from the hub")
        return any(isinstance(one, dict) and one.get("topics") == [topic] for one in filters)

    async def get(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        """Return the answer to a GET. Raises NotChecked when there is none."""
        try:
            return await self._http.get(path, headers={**self._bearer, **headers})
        except httpx.HTTPError as error:
            raise NotChecked(f"/{path} was not answered: {reason(error)}") from None

    async def ask_before(self, path: str, method: str, header: str) -> httpx.Response:
        """Return the answer to the question of a browser that a page of the origin has send such a request. Raises
        NotChecked when there is none.
        """
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": header}
        try:
            return await self._http.request("OPTIONS", path, headers={**asked, "Origin": self.origin or ""})
        except httpx.HTTPError as error:
            raise NotChecked(f"OPTIONS /{path} was not answered: {reason(error)}") from None

    async def ticket(self) -> str:
        """Return a ticket for a stream of our topic. Raises NotChecked when it is refused."""
        try:
            answer = await self._http.post(
                "tickets", json={"topics": [self.topic], "expires_in": TICKET_SECONDS}, headers=self._bearer
            )
            if answer.status_code == 201:
                return str(answer.json()["ticket"])
        except httpx.HTTPError as error:
            raise NotChecked(f"/tickets was not answered: {reason(error)}") from None
        except (ValueError, KeyError, TypeError):
            pass
        raise NotChecked(f"/tickets was answered {named(answer)}")

    async def get_json(self, path: str) -> Mapping[str, Any]:
        """Return the JSON object at a path of the hub, or at a URL nearby. Raises NotChecked when there is none."""
        try:
            answer = await self._http.get(path, headers={} if "://" in path else self._bearer)
            said = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            said = None
        else:
            if error_code(answer) == "insufficient_scope":
                raise NotChecked(f"the token does not grant to see /{path}")
        if not isinstance(said, dict):
            raise NotChecked(f"{path if '://' in path else f'/{path}'} does not come from the hub")
        return said

    def _note_epoch(self, event_id: str) -> None:
        if position := Position.parse(event_id.encode()):
            self.epochs.add(position.epoch)


def _credentials(token: str | None, publish_key: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the header of all requests, and that of publications. Raises DoctorRefused for what no header can have."""
    try:
        token, publish_key = check_token(token), check_publish_key(publish_key)
    except ConfigError as error:
        raise DoctorRefused(str(error)) from None
    return _bearer(token), _bearer(token or publish_key)


def _bearer(secret: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def base_url(text: str) -> httpx.URL:
    """Return the URL below which a hub has its paths, also for that of its stream. Raises DoctorRefused."""
    try:
        url = httpx.URL(text)
        usable = url.port is None or 0 < url.port < 65_536
    except (httpx.InvalidURL, UnicodeError):
        url, usable = httpx.URL(""), False
    named = re.fullmatch(rb"[A-Za-z0-9._:-]+", url.raw_host)
    if not usable or url.scheme not in ("http", "https") or not named or url.query or url.fragment:
        raise DoctorRefused("URL is the hub's public address, such as https://events.example.com, without a query.")
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/events"))


def checked_origin(text: str) -> str:
    """Return an origin as browsers send it. Raises DoctorRefused."""
    if not re.fullmatch(r"https?://[a-z0-9._:\[\]-]+", text):
        raise DoctorRefused("origin is what a page has for one, such as https://app.example: scheme and name, no path.")
    return text


def named(response: httpx.Response) -> str:
    """Return a status, with the code of an error of the hub."""
    code = error_code(response)
    return f"{response.status_code} {code}" if code else str(response.status_code)


def error_code(response: httpx.Response, body: bytes | None = None) -> str:
    """Return the ``code`` of an error of the hub itself, "" for a proxy's."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return ""
    with suppress(ValueError, AttributeError):
        code = str(json.loads(response.content if body is None else body).get("code"))
        return code if re.fullmatch("[a-z_]{1,40}", code) else ""
    return ""


def reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def unreachable(visit: Visit, why: str) -> DoctorFailed:
    return DoctorFailed(f"{visit.shown} does not answer: {why or 'the connection was closed'}")
