"""A history without chance: random numbers, generated names and times are the same in every run.

The standard library's functions are replaced, not names of the hub's modules, so that it does not matter which module
calls them. A random number is the least of its range. Generated names (epochs, names of clients without one) are
replaced in the transcript by numbers, in the order in which they appear on the wire.
"""

import random
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

import pytest

DAY_ZERO = 1_700_000_000.0  # Unix time when a history begins


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


@dataclass
class Surroundings:
    """The clocks of a history, and the names that were generated in it."""

    clock: Clock = field(default_factory=lambda: Clock(1_000.0))  # seconds that never jump
    wall: Clock = field(default_factory=lambda: Clock(DAY_ZERO))
    made_up: list[str] = field(default_factory=list)

    def token_hex(self, nbytes: int = 32) -> str:
        token = sha256(b"%d" % len(self.made_up)).hexdigest()[: 2 * nbytes]
        self.made_up.append(token)
        return token

    def plain(self, text: str) -> str:
        """The text, with a number of the same length in place of each generated name."""
        numbers: dict[str, str] = {}

        def number(found: re.Match[str]) -> str:
            return numbers.setdefault(found[0], f"t{len(numbers) + 1:0{len(found[0]) - 1}}")

        return re.sub("|".join(self.made_up), number, text) if self.made_up else text


@contextmanager
def without_chance() -> Iterator[Surroundings]:
    around = Surroundings()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "token_hex", around.token_hex)
        patch.setattr(time, "time", around.wall)
        for name in ("randint", "uniform"):
            patch.setattr(random, name, lambda low, high: low)
        patch.setattr(random, "random", lambda: 0.0)
        patch.setattr(random, "choice", lambda options: options[0])
        patch.setattr(random, "shuffle", lambda items: None)
        # Virtual time waits for the threads of this process; threads that other tests left behind must not count.
        patch.setattr(threading, "active_count", lambda: 1)
        yield around
