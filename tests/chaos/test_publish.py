"""``sse-app publish`` cuts its lines into batches; a hub that is killed in the middle of one gets each line once."""

import asyncio
from pathlib import Path

from tests.chaos.client import BEGIN, Stream, replayed, stats, texts_of
from tests.chaos.conftest import Serve, count
from tests.commands.process import started


async def test_lines_are_published_once_and_in_order_though_the_hub_is_killed(serve: Serve, path: Path) -> None:
    number, kills = count(ci=10_000, full=100_000), count(ci=2, full=10)
    flags = ("--broker", f"sqlite:///{path}", "--history", "1000000")
    server = serve(*flags)
    begin = (await stats(server.port))["top"].partition("-")[0] + BEGIN
    url = f"http://127.0.0.1:{server.port}"
    with started("publish", "--topic", "lines", stdin=-1, SSE_APP_URL=url) as publisher:
        assert publisher.stdin is not None
        lines = "".join(f"{line}\n" for line in range(1, number))
        writing = asyncio.ensure_future(asyncio.to_thread(publisher.stdin.write, lines))
        for kill in range(1, kills + 1):
            async with await Stream.open(server.port, begin) as stream:
                await stream.until_offset(kill * number // (kills + 1))
            server.kill()
            assert publisher.poll() is None, "it waits for the last line"
            server = serve(*flags, port=server.port)
        await writing
        out, err = await asyncio.to_thread(publisher.communicate, f"{number}\n")
    assert (publisher.returncode, f"{number:,} published in " in err) == (0, True), err
    replay = await replayed(server.port, begin)
    assert texts_of(replay) == [str(line) for line in range(1, number + 1)]
    assert out.strip() == replay.cursor
    print(err.splitlines()[0])
