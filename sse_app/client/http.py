"""The HTTP library below a client: httpx2, or httpx where that is what there is or what the client was given.

Both raise errors of the same names. What each of them means to a client stands here, once. The library's texts and
stack frames hold what was asked, with its keys: an error goes out without them.
"""

import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import anyio
import anyio.lowlevel

from sse_app.errors import BadInput, ClientError, Closed, ConfigError, InvalidURL, TooLarge

if TYPE_CHECKING:
    import httpx
    import httpx2

    AsyncClient: TypeAlias = httpx.AsyncClient | httpx2.AsyncClient
    Response: TypeAlias = httpx.Response | httpx2.Response

NAMES = ("httpx2", "httpx")
# No answer, or half of one. Our own mistakes (an unknown scheme, a header that cannot be) are not among them.
TRANSIENT = ("TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError", "DecodingError")
NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")  # of a proxy: it refuses the tunnel
TIMEOUT = 10.0  # seconds, for an answer other than a stream
CERTIFICATES = "SSL_CERT_FILE or SSL_CERT_DIR names certificates that cannot be read."
CONNECTING = 0.9  # of the time for an attempt
PORTS = range(1, 65_536)


class Address(NamedTuple):
    """The URL of a hub, without a trailing slash, and the header that says who asks. ``url`` may be shown."""

    url: str
    headers: Mapping[str, str]


class Http:
    """An AsyncClient of either library, whose errors are ours. A given one is closed by whoever made it.

    It belongs to the event loop where it was first used: its connections do. Raises ConfigError for a client that is
    none, and for what the environment says of proxies and certificates when it cannot be followed.
    """

    def __init__(self, given: "AsyncClient | None") -> None:
        self._own = given is None
        self.library = _installed() if given is None else _library_of(given)
        self._http: Any = _made(self.library) if given is None else given
        self.transient = tuple(getattr(self.library, name) for name in TRANSIENT)
        self._not_sent = tuple(getattr(self.library, name) for name in NOT_SENT)
        self._loop: object = None

    def address(self, text: str) -> Address:
        """The address that ``text`` names. A user and a password in it become a header (RFC 7617)."""
        try:
            url = self.library.URL(text)
            usable = url.port is None or url.port in PORTS
            credentials = f"{url.username}:{url.password}".encode()
        except (self.library.InvalidURL, UnicodeError):
            usable = False
        if not usable:
            raise InvalidURL("This is no URL: its host, its port or a character in it cannot be.")
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
            raise InvalidURL("The URL of a hub begins with http:// or https:// and has a host, and no ? or #.")
        basic = {"Authorization": f"Basic {b64encode(credentials).decode()}"} if url.userinfo else {}
        return Address(str(url.copy_with(userinfo=b"")).rstrip("/"), basic)

    def target(self, url: str, parameters: tuple[tuple[str, str], ...]) -> Any:
        """A URL to ask at. Raises BadInput for parameters that none can carry."""
        failure: BadInput
        try:
            return _target(self.library, url, parameters)
        except UnicodeEncodeError:
            failure = BadInput("A topic, type or name holds a lone surrogate, which UTF-8 cannot carry.")
        except self.library.InvalidURL:
            failure = TooLarge("The topics and names are too long together: a URL has room for 65,536 characters.")
        raise failure  # not within the except: the error of the library would go along

    def request(self, method: str, target: Any, headers: Mapping[str, Any], /, **options: Any) -> Any:
        """A request to send."""
        return self._http.build_request(method, target, headers={**options.pop("headers", {}), **headers}, **options)

    async def attempt(self, request: Any, seconds: float) -> Any:
        """The answer to a request that will be cut off after so many seconds. Raises as ``send`` does.

        A connection that is not there by then has failed before: cut off in a TLS handshake, the library leaves its
        socket open, and it would not be known that nothing was sent.
        """
        request.extensions["timeout"]["connect"] = min(TIMEOUT, CONNECTING * seconds)
        return await self.send(request)

    async def send(self, request: Any, *, stream: bool = False) -> Any:
        """The answer. Raises one of ``transient`` when there is none, else ClientError or Closed."""
        self._belong()
        try:
            return await self._http.send(request, stream=stream)
        except Exception as error:
            failure = self._meaning(error)
        try:
            raise failure
        finally:
            del failure  # else it and this frame would hold each other

    async def open(self, request: Any, silence: float) -> Any:
        """The head of an answer whose body is ``read``. Raises as ``send`` does."""
        with anyio.move_on_after(max(silence, TIMEOUT)):
            return await self.send(request, stream=True)
        raise self._silent()

    async def read(self, body: AsyncIterator[bytes], silence: float) -> bytes | None:
        """The next piece of a body; None at its end. Raises one of ``transient``, also after so many seconds in which
        nothing came.
        """
        failure = self._silent()
        with anyio.move_on_after(silence):
            try:
                return await anext(body, None)
            except Exception as error:
                failure = self._meaning(error)
        try:
            raise failure
        finally:
            del failure

    def _silent(self) -> Exception:
        error: Exception = self.library.ReadTimeout("nothing was heard in time")
        return error

    def is_sent(self, error: Exception) -> bool:
        """Return True when the hub may have got a request that ended with this error."""
        return not isinstance(error, self._not_sent)

    async def aclose(self) -> None:
        if self._own:
            self._belong()
            await self._http.aclose()

    def _belong(self) -> None:
        """Raises ClientError in another event loop than before, where half of a request would work."""
        here = anyio.lowlevel.current_token()
        if self._loop is None:
            self._loop = here
        if self._loop != here:
            raise ClientError("This client was used in another event loop: make one in each, as in each asyncio.run.")

    def _meaning(self, error: Exception) -> Exception:
        """The error to raise for one of the library's. Any other, as of a transport of the user's, is itself."""
        library = self.library
        match error:
            case library.InvalidURL() | library.UnsupportedProtocol() | library.TooManyRedirects():
                return InvalidURL("The address leads nowhere: it redirects in a circle, or to what is no URL of HTTP.")
            case OverflowError() | ExceptionGroup(exceptions=[OverflowError(), *_]):
                return InvalidURL("The address of the hub, or of the proxy before it, has a port above 65,535.")
            case library.LocalProtocolError():
                return ClientError("The request cannot be sent: one of its headers holds what HTTP does not allow.")
            case RuntimeError() if self._http.is_closed:
                return Closed("This client is closed: make another one.")
            case library.RequestError():
                error.__cause__ = error.__context__ = error.__traceback__ = None
        return error


def _installed() -> ModuleType:
    try:
        import httpx2
    except ModuleNotFoundError:
        import httpx

        return httpx
    return httpx2


def _library_of(http: "AsyncClient") -> ModuleType:
    for kind in type(http).__mro__:
        library = sys.modules.get(kind.__module__.partition(".")[0])
        if kind.__name__ == "AsyncClient" and library is not None and library.__name__ in NAMES:
            return library
    raise ConfigError("http is an AsyncClient of httpx2 or of httpx.")


def _made(library: ModuleType) -> Any:
    """As many streams as are asked for: a limit would make the next one wait for ever."""
    try:
        return library.AsyncClient(limits=library.Limits(max_connections=None))
    except ImportError:
        failure = f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names a SOCKS proxy: pip install '{library.__name__}[socks]'"
    except OSError:  # ssl.SSLError is one
        failure = CERTIFICATES
    except (ValueError, library.InvalidURL):
        failure = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY holds what is no proxy of HTTP, or no list of hosts."
    raise ConfigError(failure)


@lru_cache(maxsize=1024)  # the library takes 0.1 ms to parse one, and who publishes much publishes to few
def _target(library: ModuleType, url: str, parameters: tuple[tuple[str, str], ...]) -> Any:
    return library.URL(url, params=parameters) if parameters else library.URL(url)
