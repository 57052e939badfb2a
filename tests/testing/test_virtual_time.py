import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import anyio
import httpx
import pytest

from sse_app.testing import Deadlock, VirtualTimeLoop, live, run_virtual

DAY = 24 * 3600


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture
def real_time() -> Iterator[None]:
    """Fail after 10 real seconds, which is less than the virtual seconds that the tests here sleep."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 10


pytestmark = pytest.mark.usefixtures("real_time")


@pytest.mark.virtual_time
async def test_a_marked_test_and_its_fixtures_share_a_virtual_loop(loop: asyncio.AbstractEventLoop) -> None:
    assert isinstance(loop, VirtualTimeLoop)
    assert asyncio.get_running_loop() is loop


async def test_an_unmarked_test_runs_in_real_time() -> None:
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


@pytest.mark.virtual_time
async def test_the_clock_starts_at_zero_and_jumps_exactly() -> None:
    clock = asyncio.get_running_loop().time
    assert clock() == 0
    await asyncio.sleep(15)
    assert clock() == pytest.approx(15)
    await asyncio.sleep(0)
    assert clock() == pytest.approx(15)
    await anyio.sleep(400 * DAY)
    assert clock() == pytest.approx(15 + 400 * DAY)


@pytest.mark.virtual_time
async def test_a_day_of_heartbeats_is_short() -> None:
    for _ in range(DAY // 15):
        await asyncio.sleep(15)
    assert asyncio.get_running_loop().time() == pytest.approx(DAY)


@pytest.mark.virtual_time
async def test_timers_fire_in_their_order() -> None:
    fired: list[tuple[int, float]] = []

    async def fire(after: int) -> None:
        await asyncio.sleep(after)
        fired.append((after, asyncio.get_running_loop().time()))

    async with asyncio.TaskGroup() as tasks:
        for after in (30, 10, 20, 10):
            tasks.create_task(fire(after))
    assert fired == [(10, 10), (10, 10), (20, 20), (30, 30)]


@pytest.mark.virtual_time
async def test_time_does_not_pass_while_something_is_ready() -> None:
    for _ in range(1000):
        await asyncio.sleep(0)
    assert asyncio.get_running_loop().time() == 0


@pytest.mark.virtual_time
async def test_timeouts_of_asyncio_and_anyio() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError), anyio.fail_after(60):
        await anyio.Event().wait()
    assert asyncio.get_running_loop().time() == pytest.approx(120)


def test_run_virtual_returns_the_result() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(3600)


def test_a_deadlock_raises_and_names_who_waits() -> None:
    async def waits_for_nobody() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"waits_for_nobody at .*test_virtual_time\.py:\d+"):
        run_virtual(waits_for_nobody())


def virtual_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


def test_a_deadlock_beside_an_idle_socket_raises_later() -> None:
    async def accept_nobody() -> None:
        virtual_loop().deadlock = 0.05
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        async with server:
            await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(accept_nobody())


@pytest.mark.virtual_time
@pytest.mark.parametrize("to_thread", [asyncio.to_thread, anyio.to_thread.run_sync])
async def test_a_working_thread_is_not_overtaken(
    to_thread: Callable[[Callable[[], int]], Awaitable[int]],
) -> None:
    virtual_loop().patience = 0
    async with asyncio.timeout(1000):
        assert await to_thread(lambda: sum(range(1_000_000))) == 499_999_500_000  # some milliseconds of work
    assert asyncio.get_running_loop().time() < 10


@pytest.mark.virtual_time
async def test_a_thread_may_wake_the_loop() -> None:
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set,))
    thread.start()
    await woken.wait()
    thread.join()


@pytest.mark.virtual_time
async def test_sockets_work_between_jumps() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await asyncio.sleep(100)
            writer.write(line)
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for line in (b"one\n", b"two\n"):
            writer.write(line)
            assert await reader.readline() == line
        writer.write_eof()
        assert await reader.read() == b""  # the peer has received the end, and closed too
        writer.close()
        await writer.wait_closed()
    assert asyncio.get_running_loop().time() == pytest.approx(200)


@pytest.mark.virtual_time
async def test_a_server_in_another_thread_answers() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 204})  # type: ignore[operator]
        await send({"type": "http.response.body"})  # type: ignore[operator]

    with live(app) as server:
        async with httpx.AsyncClient(timeout=None) as client:
            assert (await client.get(server.url)).status_code == 204
