"""Connections to a Redis server, and the queue of the commands that are sent on one."""

import asyncio
import logging
import math
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
SILENCE = 3.0  # seconds without an answer that is due; no command blocks longer than a third of it
SENTINEL_DEADLINE = 0.5  # seconds for a Sentinel to name the master, then the next one is asked
SENTINEL_PORT = 26379
# Parameters of a URL that redis-py must not see. Timeouts are measured here: with a socket_timeout redis-py calls
# asyncio.wait_for, which makes a task for every command and up to Python 3.11 may swallow a cancellation.
OURS = ("prefix", "protocol", "decode_responses", "max_connections", "socket_timeout", "socket_connect_timeout")

# The parsers of redis-py for numbers in a URL, and those that take their place: redis-py's own take `1_0` and `nan`.
NUMBERS: Mapping[object, Callable[[str], float]] = {int: whole, float: number}

# The errors of redis-py when a connection is gone, or its peer does not speak the protocol.
FAILURES = (RedisError, OSError, EOFError, ValueError)

UNREACHABLE = "The broker, a Redis server, cannot be reached; nothing was published. Try again in a few seconds."
REFUSED = "The broker, a Redis server, takes no publications now; nothing was published. Our log says why; try later."
FULL = "The broker, a Redis server, has no memory left; nothing was published. Give it more, or keep less history."

Argument = str | bytes | int
OnConnect = Callable[[AbstractConnection], Awaitable[None]]


class _Command:
    __slots__ = ("answer", "arguments", "sent", "weight")

    def __init__(self, arguments: tuple[Argument, ...], weight: int) -> None:
        self.arguments, self.weight = arguments, weight
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent = False


class CommandQueue:
    """Commands that wait for one connection, on which one task alone sends and reads; those that wait at the same time
    are sent together, of a weight of ``at_once`` at most, or a heavier one alone.

    A caller waits for a future. Cancelling it takes nothing from the connection, so no answer can go to another caller
    (CVE-2023-28858, CVE-2023-28859).
    """

    def __init__(self, pool: ConnectionPool, unanswered: BrokerError, *, at_once: int, deadline: float) -> None:
        self._pool = pool
        self._unanswered = unanswered  # raised when a command was sent and no answer came
        self._at_once = at_once
        self._deadline = deadline  # seconds from the call to its answer
        # Bounded by the number of callers: _next_commands drops the commands of those that gave up.
        self._waiting: deque[_Command] = deque()
        self._more = asyncio.Event()
        self._last_refusal = ""

    async def call(self, *arguments: Argument, weight: int = 1) -> Any:
        """Send a command and return its answer. ``weight`` is how much the server has to do for it.

        Raises BrokerUnavailable when it was not executed, LogFull, or ``unanswered`` when it may have been.
        """
        command = _Command(arguments, weight)
        self._waiting.append(command)
        self._more.set()
        try:
            async with asyncio.timeout(self._deadline):
                return await command.answer
        except TimeoutError:
            raise self._unanswered_error(command) from None

    def _unanswered_error(self, command: _Command) -> BrokerError:
        error = self._unanswered if command.sent else BrokerUnavailable(UNREACHABLE)
        return type(error)(*error.args)  # one for each caller: it gets the traceback of the raise

    async def run(self) -> NoReturn:
        """Send the commands that are called, as long as the broker is open."""
        try:
            while True:
                await self._more.wait()
                await self._answer_next()
        finally:
            self._fail(self._next_commands(math.inf))

    async def _answer_next(self) -> None:
        commands: list[_Command] = []
        try:
            async with connected(self._pool) as connection:
                commands = self._next_commands(self._at_once)
                await self._exchange(connection, commands)
        except FAILURES:  # the task that reads the tail logs the reason
            commands = commands or self._next_commands(math.inf)
        finally:
            self._fail(commands)

    def _fail(self, commands: Sequence[_Command]) -> None:
        for command in commands:
            if not command.answer.done():
                command.answer.set_exception(self._unanswered_error(command))

    def _next_commands(self, weight: float) -> list[_Command]:
        """The next commands of a weight, without those whose callers have given up; at least one."""
        taken: list[_Command] = []
        while self._waiting and weight > 0:
            command = self._waiting.popleft()
            if command.answer.done():
                continue
            if taken and command.weight > weight:
                self._waiting.appendleft(command)
                break
            taken.append(command)
            weight -= command.weight
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
            raise refusal  # a new connection loads the script again, and may lead to another server

    def _refused(self, error: ResponseError) -> BrokerError:
        if str(error) != self._last_refusal:
            self._last_refusal = str(error)
            logger.warning("Redis refused a command: %s", error)
        return LogFull(FULL) if isinstance(error, OutOfMemoryError) else BrokerUnavailable(REFUSED)


def split_url(url: str) -> tuple[str, str | None]:
    """Return the URL as redis-py takes it, and the ``prefix`` that was in it. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        _check_numbers(parts, query)
    except ValueError:
        raise ConfigError("broker: not a URL of a Redis server.") from None
    rest = urlencode([(name, value) for name, value in query if name not in OURS])
    return parts._replace(query=rest).geturl(), dict(query).get("prefix")


def _check_numbers(parts: SplitResult, query: Sequence[tuple[str, str]]) -> None:
    """Raises ValueError for numbers that are not plain ones.

    redis-py reads them with ``int`` and ``float``, which take more, and uses database 0 for one that is no number.
    """
    for name, value in query:
        if (read := NUMBERS.get(URL_QUERY_ARGUMENT_PARSERS.get(name))) is not None:
            read(value)
    database = "" if parts.scheme == "unix" else unquote(parts.path).removeprefix("/")
    if parts.scheme == "redis+sentinel":
        database = database.partition("/")[2]
    if database:
        whole(database)


def connections(url: str, on_connect: OnConnect) -> ConnectionPool:
    """Return a pool to the server that a URL names; ``on_connect`` opens each connection. Raises ConfigError."""
    try:
        pool = _pool(
            url, protocol=2, socket_timeout=None, socket_connect_timeout=CONNECT, redis_connect_func=on_connect
        )
        pool.connection_class(**pool.connection_kwargs)  # refuses parameters that it does not have
    except (RedisError, TypeError, ValueError):  # the text of the error may repeat what is secret in the URL
        raise ConfigError("broker: not a URL of a Redis server, or with a parameter that redis-py lacks.") from None
    return pool


def _pool(url: str, **options: Any) -> ConnectionPool:
    """Return a pool, also for ``redis+sentinel://user:password@host:port,host:port/service/database``: redis-py has no
    URL for Sentinels."""
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
    del known["host"]  # the Sentinels name it
    limits: dict[str, Any] = {"socket_timeout": SENTINEL_DEADLINE, "socket_connect_timeout": SENTINEL_DEADLINE}
    limits["retry"] = Retry(NoBackoff(), 0)
    sentinels = Sentinel(addresses, sentinel_kwargs=limits)  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(service, sentinels, **known)  # type: ignore[no-untyped-call]


@asynccontextmanager
async def connected(pool: ConnectionPool) -> AsyncIterator[AbstractConnection]:
    """Take a connection from the pool; after an error close it, since an answer to nobody may be left in it."""
    connection: AbstractConnection
    try:
        async with asyncio.timeout(CONNECT):
            connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    except TimeoutError:
        raise TimeoutError(f"no connection within {CONNECT:.0f} s") from None
    try:
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # wait_for, with which redis-py asks Sentinels, may have swallowed it
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
    """Raise TimeoutError SILENCE seconds after the last answer. It yields a function to call at each answer."""
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(SILENCE) as limit:
            yield lambda: limit.reschedule(clock() + SILENCE)
    except TimeoutError:
        raise TimeoutError(f"no answer within {SILENCE:.0f} s") from None


async def check_version(connection: AbstractConnection) -> None:
    """Raises ConfigError for a server that is too old."""
    with suppress(ResponseError):  # an ACL may forbid INFO
        info = await execute(connection, "INFO", "server")
        if (version := re.search(rb"redis_version:(\d+)", info)) and int(version[1]) < 7:
            raise ConfigError("broker: Redis 7 or newer is needed, or Valkey.")


async def durability(connection: AbstractConnection) -> Durability:
    """Return how durable the server's log is, as far as its ACL lets us ask."""
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
