"""What comes back, and when, after a node has died: a simulation with the delays that the hub and its clients keep.

A node is one process with a core of its own. Its clients come back after their `retry`, each to the node that has the
fewest streams, and wait in the backlog of its listening socket until they are served: the welcome, then from the log
what they missed. Where the backlog is full, TCP asks again after 1, 2, 4, ... s. A full hub tells them to come later.
"""

import random
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections import Counter, deque
from collections.abc import Generator, Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import inf
from typing import NamedTuple

from sse_app import Config
from sse_app.backoff import Backoff
from sse_app.client.answers import BACKOFF
from sse_app.draining import SPREAD
from sse_app.server.sockets import BACKLOG

HUB = Config()
DELIVERIES = 163_000  # per CPU second of a node, events one by one: docs/performance.md
DELAY = (0.01, 0.2)  # seconds that timers and the network add to each wait
SYN = (1, 2, 4, 8, 16, 32)  # seconds until TCP asks again (RFC 6298); then it gives up
ROWS = (*range(10), *range(10, 65, 5))  # seconds


class Reading(NamedTuple):
    """Measured CPU us of a node that reads what a client missed, and for each publication of it."""

    once: float
    each: float


# With Redis and NATS too it is read from a node's memory, if it is among the newest 10,000 publications.
READING = {"memory": Reading(20, 0.3), "file": Reading(130, 4)}


class Client(NamedTuple):
    lost: float  # when its stream ended: seconds since the node died, or began to drain
    retry: float  # seconds to wait, as the hub told it


class Node:
    """Serves who comes, one after the other, in the time that delivering events leaves it."""

    def __init__(self, options: Namespace, streams: int, up: float = 0.0) -> None:
        self.streams = self.connections = streams  # also those that still wait
        self.up = up  # since when
        self._rate, self._reading = options.rate, READING[options.log]
        self._connect = 1 / options.connects
        self._served: deque[float] = deque()  # when each of those in the backlog will have been

    def serve(self, now: float, missed: float) -> float | None:
        """When one who comes now and missed so much will have been served; None when the backlog is full."""
        while self._served and self._served[0] <= now:
            self._served.popleft()
        if len(self._served) > BACKLOG:
            return None
        reading = (min(1, missed) * self._reading.once + missed * self._reading.each) / 1e6
        idle = 1 - self.streams * self._rate / DELIVERIES
        self._served.append((self._served[-1] if self._served else now) + (self._connect + reading) / idle)
        return self._served[-1]


class Storm:
    """All that happens until everybody is back."""

    def __init__(self, options: Namespace, nodes: list[Node], clients: list[Client]) -> None:
        self.arrivals: Counter[int] = Counter()  # at the nodes, by second; a SYN that is repeated counts once
        self.unreachable = self.dropped = self.sent_away = 0
        self.longest = self.welcomed = 0.0  # seconds: from arrival to welcome, with what was missed; the last of all
        self._nodes, self._room, self._rate = nodes, options.room, options.rate
        self._backs_off = options.client == "python"
        lives = [self._come_back(client) for client in clients]
        due = [(next(life), number) for number, life in enumerate(lives)]
        heapify(due)
        while due:
            now, number = heappop(due)
            again = next_step(lives[number], now)
            if again is not None:
                heappush(due, (again, number))

    def _come_back(self, client: Client) -> Generator[float, float, None]:
        """One client, until it has its welcome. Yields when it does something next, and is told when that is now."""
        retry, backoff = client.retry, Backoff(*BACKOFF)
        backoff.failures = 1  # the connection that it lost
        now = yield client.lost + retry + random.uniform(*DELAY)
        while True:
            came = now
            node, now = yield from self._ask(client, now)
            if node is not None and node.streams < self._room:
                node.streams += 1
                self.welcomed, self.longest = now, max(self.longest, now - came)
                return
            if node is not None:
                node.connections -= 1
                self.sent_away += 1
                wait = retry = 2 * ours()
            else:
                wait = max(retry, backoff.next(retry)) if self._backs_off else retry
            now = yield now + wait + random.uniform(*DELAY)

    def _ask(self, client: Client, now: float) -> Generator[float, float, tuple[Node | None, float]]:
        """The node that has served it, and when; no node, and when it gave up."""
        node = min((node for node in self._nodes if node.up <= now), key=lambda node: node.connections, default=None)
        if node is None:
            self.unreachable += 1
            return None, now
        node.connections += 1
        self.arrivals[int(now)] += 1
        for pause in SYN:
            served = node.serve(now, self._rate * (now - client.lost))
            if served is not None:
                return node, (yield served)
            self.dropped += 1
            now = yield now + pause
        node.connections -= 1
        return None, now


def next_step(life: Generator[float, float, None], now: float) -> float | None:
    try:
        return life.send(now)
    except StopIteration:
        return None


def ours() -> float:
    """What a hub tells one of its clients, seconds."""
    return random.uniform(HUB.retry_min, HUB.retry_max)


def cases(options: Namespace, number: int) -> dict[str, list[Client]]:
    """When the streams of a node end and what their clients were told, by the name of the case."""
    low, high = options.retry
    closing = SPREAD * HUB.drain
    return {
        "3 s": [Client(0, 3)] * number,
        f"{HUB.retry_min:g}-{HUB.retry_max:g} s": [Client(0, ours()) for _ in range(number)],
        f"{low:g}-{high:g} s": [Client(0, random.uniform(low, high)) for _ in range(number)],
        "drain": [Client(closing * turn / number, ours()) for turn in range(number)],
    }


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--subscribers", type=int, default=1_000_000, help="streams of all nodes")
    parser.add_argument("--nodes", type=int, default=10, help="of which one dies")
    parser.add_argument("--back", type=float, default=inf, help="seconds until that one is there again, empty")
    parser.add_argument("--room", type=float, default=inf, help="streams that a node takes (max_subscribers)")
    parser.add_argument("--rate", type=float, default=0.5, help="events per second that each subscriber gets")
    parser.add_argument("--connects", type=float, default=8_000, help="that a node takes per CPU second")
    parser.add_argument("--log", choices=READING, default="memory", help="where they read what they missed")
    parser.add_argument("--retry", type=float, nargs=2, default=(1, 30), help="seconds of the third case")
    parser.add_argument("--client", choices=("browser", "python"), default="browser", help="how it waits when refused")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random")
    options = parser.parse_args()
    if options.nodes < 2 and options.back == inf:
        parser.error("nobody is left: --nodes has to be 2 or more, or --back given")
    if options.subscribers / max(1, options.nodes - 1) * options.rate > 0.9 * DELIVERIES:
        parser.error("those that are left have no time for connects: more --nodes, or a lower --rate")
    return options


def show(name: str, values: Iterable[float | str], form: str = ",.0f") -> None:
    print(f"{name:24}" + "".join(f"{value if isinstance(value, str) else format(value, form):>10}" for value in values))


def main() -> None:
    options = arguments()
    random.seed(options.seed)
    each = options.subscribers // options.nodes
    storms: list[Storm] = []
    named = cases(options, each)
    for clients in named.values():
        nodes = [Node(options, each) for _ in range(options.nodes - 1)]
        nodes += [Node(options, 0, options.back)] * (options.back < inf)
        storms.append(Storm(options, nodes, clients))

    show("retry", named)
    for begin, end in pairwise(ROWS):
        rates = [sum(storm.arrivals[second] for second in range(begin, end)) / (end - begin) for storm in storms]
        if any(rates):
            show(f"{begin} s" if end == begin + 1 else f"{begin}-{end - 1} s", rates)
    show("most in one second", [max(storm.arrivals.values()) for storm in storms])
    show("SYNs dropped", [storm.dropped for storm in storms])
    show("refused: no node", [storm.unreachable for storm in storms])
    show("sent away: hub full", [storm.sent_away for storm in storms])
    show("longest wait, s", [storm.longest for storm in storms], ".1f")
    show("all are back after, s", [storm.welcomed for storm in storms], ".1f")


if __name__ == "__main__":
    main()
