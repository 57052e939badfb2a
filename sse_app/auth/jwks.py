"""The keys of an issuer that publishes them at a URL, as a JWK set (RFC 7517).

They are fetched at the start and from then on regularly; a failure changes nothing, so that an outage of the issuer is
none of the hub. Who sends tokens cannot make the hub fetch often: whatever ids of keys they name, there is at most one
look in ``LOOK_AGAIN`` seconds, for all of them together.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import httpx

from sse_app.auth.issuer import UNAVAILABLE, IssuerSettings
from sse_app.auth.signatures import InvalidKey, KeySet, VerifyingKey, jwk_set
from sse_app.errors import KeysUnavailable

logger = logging.getLogger("sse_app")

FETCH_TIME = 5.0  # seconds for a fetch from begin to end
SIZE_MAX = 256 * 1024  # bytes of a JWK set
LOOK_AGAIN = 30.0  # seconds from one look to the next, at least
INTERVAL = 300.0  # seconds between looks, where the answer does not say how long it may be kept
INTERVAL_MIN, INTERVAL_MAX = 60.0, 86_400.0  # seconds: the bounds of what it may say

_MAX_AGE = re.compile(r'(?:^|[\s,])max-age="?([0-9]{1,9})', re.IGNORECASE)  # RFC 9111, 5.2.2.1


class RemoteKeys:
    """The keys at the URL of an issuer. ``run`` fetches them, as long as it runs.

    ``stale_after`` seconds after the last good fetch they count no longer, if all fetches since have failed.
    ``former`` are keys that the issuer had at another place: those which are not at the URL it has taken back.
    ``open_client`` makes the HTTP client of a fetch; it is called in a thread, since reading the trusted certificates
    takes some 20 ms.
    """

    def __init__(
        self,
        settings: IssuerSettings,
        *,
        stale_after: float,
        former: Iterable[VerifyingKey] = (),
        open_client: Callable[[], httpx.AsyncClient] | None = None,
    ) -> None:
        assert settings.url is not None
        self.on_gone: Callable[[frozenset[str]], object] = lambda ids: None
        self.failures = 0
        self.stale = True  # nothing is known yet
        self._settings, self._url, self._stale_after = settings, settings.url, stale_after
        self._open_client = open_client or self._default_client
        self._keys = KeySet(former)
        self._failing = False  # the newest fetch has failed
        self._fetched_at: float | None = None  # times are those of the loop
        self._looked_at = self._next_at = 0.0
        self._wanted: asyncio.Event | None = None  # there while this runs
        self._looking: asyncio.Future[None] | None = None

    def __iter__(self) -> Iterator[VerifyingKey]:
        return iter(self._keys)

    def find(self, kid: str | None) -> Sequence[VerifyingKey]:
        return self._keys.find(kid)

    @property
    def age(self) -> float | None:
        """Seconds since the last good fetch; None before the first."""
        return None if self._fetched_at is None else asyncio.get_running_loop().time() - self._fetched_at

    async def refresh(self) -> None:
        """Look for new keys when the last look is long enough ago; callers at the same time share one. Raises
        KeysUnavailable when the newest look has failed: then it is not known whether a key that is missing counts.
        """
        if self._looking is None and self._wanted is not None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._looked_at + LOOK_AGAIN:
                self._looking = loop.create_future()
                self._wanted.set()
        if self._looking is not None:
            await asyncio.shield(self._looking)
        if self.stale or self._failing:
            raise KeysUnavailable(UNAVAILABLE)

    async def run(self) -> None:
        """Fetch the keys now, and again whenever it is time, until cancelled."""
        wanted = self._wanted = asyncio.Event()
        self._looking = asyncio.get_running_loop().create_future()
        try:
            while True:
                await self._look()
                wanted.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._next_at):
                        await wanted.wait()
        finally:
            self._wanted = None
            self._answer_waiters()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._looked_at = loop.time()
        self._looking = self._looking or loop.create_future()
        try:
            async with await asyncio.to_thread(self._open_client) as client:
                keys, interval = await self._fetch(client)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:  # the last: for SOCKS
            self._note_failure(error)
            interval = LOOK_AGAIN
        else:
            self._take(keys)
        # Well before they are stale: one failed fetch is to be no outage.
        self._next_at = loop.time() + min(interval, self._stale_after / 2)
        self._answer_waiters()

    def _answer_waiters(self) -> None:
        if self._looking is not None and not self._looking.done():
            self._looking.set_result(None)
        self._looking = None

    async def _fetch(self, client: httpx.AsyncClient) -> tuple[KeySet, float]:
        """Return the keys at the URL, and for how many seconds they may be kept."""
        # Not compressed: what 256 KiB of gzip hold may be 256 MiB.
        headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
        body = bytearray()
        async with asyncio.timeout(FETCH_TIME), client.stream("GET", self._url, headers=headers) as response:
            if response.status_code != 200:
                raise InvalidKey(f"the answer is {response.status_code}")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > SIZE_MAX:
                    raise InvalidKey(f"the answer has more than {SIZE_MAX:,} bytes")
        listed = await asyncio.to_thread(jwk_set, bytes(body), secrets=False)  # 10 ms for 100 keys
        keys = KeySet(listed, self._settings.algorithms)
        if not len(keys):
            raise InvalidKey("it has no key for signatures")
        return keys, _interval(response.headers.get("cache-control", ""))

    def _take(self, keys: KeySet) -> None:
        if self._failing:
            logger.warning("the keys of token issuer %s are fetched again", self._settings.name)
        here = {key.fingerprint for key in keys}
        gone = frozenset(key.id for key in self._keys if key.fingerprint not in here)
        self._keys, self.stale, self._failing = keys, False, False
        self._fetched_at = asyncio.get_running_loop().time()
        if gone:
            self.on_gone(gone)

    def _note_failure(self, error: Exception) -> None:
        self.failures += 1
        if not self._failing:
            reason = str(error) if isinstance(error, InvalidKey) else type(error).__name__
            logger.warning("the keys of token issuer %s cannot be fetched: %s", self._settings.name, reason)
        self._failing = True
        self.stale = self.stale or (self.age or 0.0) >= self._stale_after

    def _default_client(self) -> httpx.AsyncClient:
        # The proxies of the environment are for other hosts than this one.
        elsewhere = self._url.startswith("https:")
        return httpx.AsyncClient(timeout=FETCH_TIME, follow_redirects=False, trust_env=elsewhere)


def _interval(cache_control: str) -> float:
    found = _MAX_AGE.search(cache_control)
    return INTERVAL if found is None else min(max(float(found[1]), INTERVAL_MIN), INTERVAL_MAX)
