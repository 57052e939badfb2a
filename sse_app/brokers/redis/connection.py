"""Connections to a Redis server: to which one, what is sent on them, and whose answer is whose."""

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS, AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from sse_app.errors import BrokerError, BrokerUnavailable, ConfigError, LogFull
from sse_app.publication import Durability
from sse_app.quantities import number, whole

logger = logging.getLogger("sse_app")

CONNECT = 2.0  # seconds until a connection is ready for commands
SILENCE = 3.0  # seconds on a connection without the answer that is due; no command blocks longer than a third of it
SENTINEL_DEADLINE = 0.5  # seconds for one Sentinel to say who is the master, then the next one is asked
SENTINEL_PORT = 26379
# Parameters of a URL that redis-py must not see. Time is measured here: with a socket_timeout it calls
# asyncio.wait_for, which up to Python 3.11 may swallow a cancellation, and makes a task for every command.
OURS = ("prefix", "protocol", "decode_responses", "max_connections", "socket_timeout", "socket_connect_timeout")

PLAIN: Mapping[object, Callable[[str], float]] = {int: whole, float: number}  # how a parameter's number may be written

# What redis-py raises when a connection is gone, or speaks nonsense.
FAILURES = (RedisError, OSError, EOFError, ValueError)

AWAY = "The broker, a Redis server, cannot be reached; nothing was published. Try again in a few seconds."
REFUSED = "The broker, a Redis server, takes no publications now; nothing was published. Our log says why; try later."
FULL = "The broker, a Redis server, has no memory left; nothing was published. Give it more, or keep less history."

Argument = str | bytes | int
Greet = Callable[[AbstractConnection], Awaitable[None]]


class _Command:
    __slots__ = ("answer", "arguments", "sent")

    def __init__(self, arguments: tuple[Argument, ...]) -> None:
        self.arguments = arguments
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent = False


class Line:
    """One connection at a time, that one task alone sends on and reads from; what comes in meanwhile goes out together,
    ``at_once`` commands at most.

    Whoever asks waits for a future. Cancelling that takes nothing from the connection, so no answer can go to somebody
    else (CVE-2023-28858, CVE-2023-28859).
    """

    def __init__(self, pool: ConnectionPool, unanswered: BrokerError, *, at_once: int, deadline: float) -> None:
        self._pool = pool
        self._unanswered = unanswered  # raised when a command was sent and no answer came
        self._at_once = at_once
        self._deadline = deadline  # seconds from asking to the answer
        self._waiting: deque[_Command] = deque()  # bounded by those who ask: what they gave up is dropped in _take
        self._more = asyncio.Event()
        self._complaint = ""

    async def ask(self, *arguments: Argument) -> Any:
        """The answer to a command. Raises BrokerUnavailable when it was not executed, LogFull, or what is raised for no
        answer."""
        command = _Command(arguments)
        self._waiting.append(command)
        self._more.set()
        try:
            async with asyncio.timeout(self._deadline):
                return await command.answer
        except TimeoutError:
            raise self._lost(command) from None

    def _lost(self, command: _Command) -> BrokerError:
        lost = self._unanswered if command.sent else BrokerUnavailable(AWAY)
        return type(lost)(*lost.args)  # each of those who wait gets its own

    async def run(self) -> NoReturn:
        """Send what is asked, as long as the broker is open."""
        try:
            while True:
                await self._more.wait()
                await self._answer_next()
        finally:
            self._lose(self._take(len(self._waiting)))

    async def _answer_next(self) -> None:
        commands: list[_Command] = []
        try:
            async with connected(self._pool) as connection:
                commands = self._take(self._at_once)
                await self._exchange(connection, commands)
        except FAILURES:  # that the broker is away, and why, its tail says
            commands = commands or self._take(len(self._waiting))
        finally:
            self._lose(commands)

    def _lose(self, commands: Sequence[_Command]) -> None:
        for command in commands:
            if not command.answer.done():
                command.answer.set_exception(self._lost(command))

    def _take(self, count: int) -> list[_Command]:
        """Those that are next, without those for which nobody waits any more."""
        taken: list[_Command] = []
        while self._waiting and len(taken) < count:
            command = self._waiting.popleft()
            if not command.answer.done():
                taken.append(command)
        if not self._waiting:
            self._more.clear()
        return taken

    async def _exchange(self, connection: AbstractConnection, commands: list[_Command]) -> None:
        for command in commands:
            command.sent = True
        refusal: ResponseError | None = None
        async with in_time() as answered:
            await connection.send_packed_command(connection.pack_commands([command.arguments for command in commands]))
            for command in commands:
                try:
                    answer = await connection.read_response()
                except ResponseError as error:
                    refusal = error
                    if not command.answer.done():
                        command.answer.set_exception(self._refused(error))
                else:
                    if not command.answer.done():
                        command.answer.set_result(answer)
                answered()
        if isinstance(refusal, NoScriptError | ReadOnlyError):
            raise refusal  # a new connection loads the script again, and perhaps it is to another server

    def _refused(self, error: ResponseError) -> BrokerError:
        if str(error) != self._complaint:
            self._complaint = str(error)
            logger.warning("Redis refused a command: %s", error)
        return LogFull(FULL) if isinstance(error, OutOfMemoryError) else BrokerUnavailable(REFUSED)


def split_url(url: str) -> tuple[str, str | None]:
    """The URL as redis-py takes it, and the ``prefix`` that it named. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        _check_numbers(parts, query)
    except ValueError:
        raise ConfigError("broker: not a URL of a Redis server.") from None
    rest = urlencode([(name, value) for name, value in query if name not in OURS])
    return parts._replace(query=rest).geturl(), dict(query).get("prefix")


def _check_numbers(parts: SplitResult, query: Sequence[tuple[str, str]]) -> None:
    """redis-py reads its numbers with ``int`` and ``float``, and takes a database that is none for the first one."""
    for name, value in query:
        if (read := PLAIN.get(URL_QUERY_ARGUMENT_PARSERS.get(name))) is not None:
            read(value)
    database = "" if parts.scheme == "unix" else unquote(parts.path).removeprefix("/")
    if parts.scheme == "redis+sentinel":
        database = database.partition("/")[2]
    if database:
        whole(database)


def connections(url: str, greet: Greet) -> ConnectionPool:
    """A pool to the server that a URL names; ``greet`` opens each connection. Raises ConfigError."""
    try:
        pool = _pool(url, protocol=2, socket_timeout=None, socket_connect_timeout=CONNECT, redis_connect_func=greet)
        pool.connection_class(**pool.connection_kwargs)  # refuses parameters that there are not
    except (RedisError, TypeError, ValueError):  # whose text may repeat what is secret in the URL
        raise ConfigError("broker: not a URL of a Redis server, or with a parameter that redis-py lacks.") from None
    return pool


def _pool(url: str, **options: Any) -> ConnectionPool:
    """redis-py has no URL for Sentinels: ``redis+sentinel://user:password@host:port,host:port/service/database``."""
    parts = urlsplit(url)
    if parts.scheme != "redis+sentinel":
        return ConnectionPool.from_url(url, **options)
    credentials, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.removeprefix("/").partition("/")
    nodes = [urlsplit(f"//{host}") for host in hosts.split(",")]
    addresses = [(node.hostname, node.port or SENTINEL_PORT) for node in nodes]
    if not service or not all(host for host, _ in addresses):
        raise ValueError("a service and its Sentinels")
    plain = parts._replace(scheme="redis", netloc=f"{credentials}{at}localhost", path=f"/{database}").geturl()
    known = dict(ConnectionPool.from_url(plain, **options).connection_kwargs)
    del known["host"]  # of which the Sentinels know
    limits: dict[str, Any] = {"socket_timeout": SENTINEL_DEADLINE, "socket_connect_timeout": SENTINEL_DEADLINE}
    limits["retry"] = Retry(NoBackoff(), 0)
    sentinels = Sentinel(addresses, sentinel_kwargs=limits)  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(service, sentinels, **known)  # type: ignore[no-untyped-call]


@asynccontextmanager
async def connected(pool: ConnectionPool) -> AsyncIterator[AbstractConnection]:
    """A connection that is closed unless all went well: what is left in it belongs to nobody."""
    connection: AbstractConnection
    try:
        async with asyncio.timeout(CONNECT):
            connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    except TimeoutError:
        raise TimeoutError(f"no connection within {CONNECT:.0f} s") from None
    try:
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # swallowed by wait_for in redis-py, which the Sentinels are still asked with
        yield connection
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)


async def close(pool: ConnectionPool) -> None:
    with suppress(*FAILURES):
        await pool.aclose()
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            with suppress(*FAILURES):
                await sentinel.aclose()


async def execute(connection: AbstractConnection, *arguments: Argument) -> Any:
    async with in_time():
        await connection.send_command(*arguments)
        return await connection.read_response()


@asynccontextmanager
async def in_time() -> AsyncIterator[Callable[[], None]]:
    """SILENCE until an answer has come, and again until the next one: call what it gives for each."""
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(SILENCE) as limit:
            yield lambda: limit.reschedule(clock() + SILENCE)
    except TimeoutError:
        raise TimeoutError(f"no answer within {SILENCE:.0f} s") from None


async def check_version(connection: AbstractConnection) -> None:
    """Raises ConfigError for a server that is too old."""
    with suppress(ResponseError):  # it may be forbidden to ask
        info = await execute(connection, "INFO", "server")
        if (version := re.search(rb"redis_version:(\d+)", info)) and int(version[1]) < 7:
            raise ConfigError("broker: Redis 7 or newer is needed, or Valkey.")


async def durability(connection: AbstractConnection) -> Durability:
    """How the server keeps what it acknowledges, as far as it tells us."""
    try:
        answer = await execute(connection, "CONFIG", "GET", "append*")
        settings = dict(zip(answer[::2], answer[1::2], strict=True))
        if settings.get(b"appendonly") != b"yes":
            return "none"
        return "fsync" if settings.get(b"appendfsync") == b"always" else "log"
    except ResponseError:
        pass
    try:
        return "log" if b"aof_enabled:1" in await execute(connection, "INFO", "persistence") else "none"
    except ResponseError:
        return "none"
