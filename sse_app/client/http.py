"""The HTTP library below a client: httpx2, or httpx where that is what there is or what the client was given.

Both raise errors of the same names; ``Http`` alone knows them, and translates them for the client. The texts and stack
frames of the library hold the request with its keys, so that its errors are raised again without them.
"""

import sys
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import anyio
import anyio.lowlevel

from sse_app.client.credentials import Authorization
from sse_app.errors import BadInput, ClientError, Closed, ConfigError, InvalidURL, TooLarge

if TYPE_CHECKING:
    import httpx
    import httpx2

    AsyncClient: TypeAlias = httpx.AsyncClient | httpx2.AsyncClient
    Response: TypeAlias = httpx.Response | httpx2.Response

NAMES = ("httpx2", "httpx")
# Errors for no answer, or half of one. Those for mistakes in the request (an unknown scheme, a header that cannot be
# sent) are not among them.
TRANSIENT = ("TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError", "DecodingError")
NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")  # ProxyError: a proxy refused the tunnel
TIMEOUT = 10.0  # seconds until an answer other than a stream has come
CERTIFICATES = "SSL_CERT_FILE or SSL_CERT_DIR names certificates that cannot be read."
CONNECT_SHARE = 0.9  # of the time for an attempt
PORTS = range(1, 65_536)


class Address(NamedTuple):
    """The URL of a hub without a trailing slash, fit to be shown, and its user and password as an authorization."""

    url: str
    authorization: Authorization


class Http:
    """An AsyncClient of either library, whose errors are translated. The caller closes one that was given.

    It belongs to the event loop where it was first used, as its connections do. Raises ConfigError for an ``http`` of
    another type, and for variables of proxies and certificates in the environment that cannot be followed.
    """

    def __init__(self, given: "AsyncClient | None") -> None:
        self._own = given is None
        self.library = _installed_library() if given is None else _library_of(given)
        self._http: Any = _new_client(self.library) if given is None else given
        self.transient = tuple(getattr(self.library, name) for name in TRANSIENT)
        self._not_sent = tuple(getattr(self.library, name) for name in NOT_SENT)
        self._loop: object = None

    def address(self, text: str) -> Address:
        """Return the address that ``text`` names. Its user and password become an authorization."""
        try:
            url = self.library.URL(text)
            usable = url.port is None or url.port in PORTS
            basic = Authorization.basic(url.username, url.password) if url.userinfo else Authorization()
        except (self.library.InvalidURL, UnicodeError):
            usable = False
        if not usable:
            raise InvalidURL("This is no URL: its host, its port or a character in it is not allowed.")
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
            raise InvalidURL("The URL of a hub begins with http:// or https:// and has a host, and no ? or #.")
        return Address(str(url.copy_with(userinfo=b"")).rstrip("/"), basic)

    def target(self, url: str, parameters: tuple[tuple[str, str], ...]) -> Any:
        """Return ``url`` with a query. Raises BadInput for parameters that no URL can carry."""
        failure: BadInput
        try:
            return _target(self.library, url, parameters)
        except UnicodeEncodeError:
            failure = BadInput("A topic, type or name holds a lone surrogate, which UTF-8 cannot carry.")
        except self.library.InvalidURL:
            failure = TooLarge("The topics and names are too long together: a URL has room for 65,536 characters.")
        raise failure  # outside the except clause, where the library's error would become its context

    def request(
        self, method: str, target: Any, headers: Mapping[str, Any], *, timeout: Any, content: bytes | None = None
    ) -> Any:
        """Return a request for ``send``. timeout: seconds, or a Timeout of the library."""
        return self._http.build_request(method, target, headers=headers, timeout=timeout, content=content)

    async def attempt(self, request: Any, seconds: float) -> Any:
        """Return the answer to a request that its caller cancels after so many seconds. Raises as ``send`` does.

        Connecting fails a little earlier by itself. Cancelled in a TLS handshake, the library would leave its socket
        open, and nobody would know that nothing was sent.
        """
        request.extensions["timeout"]["connect"] = min(TIMEOUT, CONNECT_SHARE * seconds)
        return await self.send(request)

    async def send(self, request: Any, *, stream: bool = False) -> Any:
        """Return the answer. Raises one of ``transient`` when there is none, else ClientError or Closed."""
        self._check_loop()
        try:
            return await self._http.send(request, stream=stream)
        except Exception as error:
            failure = self._translated(error)
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame: a reference cycle

    async def open(self, request: Any, silence: float) -> Any:
        """Return an answer as soon as its head is there; ``read`` reads its body. Raises as ``send`` does."""
        with anyio.move_on_after(max(silence, TIMEOUT)):
            return await self.send(request, stream=True)
        raise self._silence_error()

    async def read(self, body: AsyncIterator[bytes], silence: float) -> bytes | None:
        """Return the next piece of a body, None at its end. Raises one of ``transient``, also after ``silence``
        seconds without a byte.
        """
        failure = self._silence_error()
        with anyio.move_on_after(silence):
            try:
                return await anext(body, None)
            except Exception as error:
                failure = self._translated(error)
        try:
            raise failure
        finally:
            del failure

    def _silence_error(self) -> Exception:
        error: Exception = self.library.ReadTimeout("no byte arrived in time")
        return error

    def is_sent(self, error: Exception) -> bool:
        """Return True when the hub may have got a request that ended with this error."""
        return not isinstance(error, self._not_sent)

    async def aclose(self) -> None:
        if self._own:
            self._check_loop()
            await self._http.aclose()

    def _check_loop(self) -> None:
        """Raise ClientError in another event loop than before: the connections are of that one."""
        here = anyio.lowlevel.current_token()
        if self._loop is None:
            self._loop = here
        if self._loop != here:
            raise ClientError("This client was used in another event loop: make one in each, as in each asyncio.run.")

    def _translated(self, error: Exception) -> Exception:
        """Return the error to raise for one of the library's; any other, as of a user's own transport, is unchanged."""
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


def _installed_library() -> ModuleType:
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


def _new_client(library: ModuleType) -> Any:
    """Return a client without a limit of connections: with one, the next stream would wait for ever."""
    try:
        return library.AsyncClient(limits=library.Limits(max_connections=None))
    except ImportError:
        failure = f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names a SOCKS proxy: pip install '{library.__name__}[socks]'"
    except OSError:  # ssl.SSLError is one
        failure = CERTIFICATES
    except (ValueError, library.InvalidURL):
        failure = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY holds what is no proxy of HTTP, or no list of hosts."
    raise ConfigError(failure)


@lru_cache(maxsize=1024)  # parsing a URL takes the library 0.1 ms, and publishers use few different ones
def _target(library: ModuleType, url: str, parameters: tuple[tuple[str, str], ...]) -> Any:
    return library.URL(url, params=parameters) if parameters else library.URL(url)
