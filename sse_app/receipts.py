"""The receipts of publications with an idempotency key: a retry gets the same answer."""

from collections import OrderedDict
from typing import Generic, TypeVar

from sse_app.publication import Position

REMEMBERED = 10_000  # receipts of publications
REMEMBERED_BATCHES = 100

Count = TypeVar("Count", int, tuple[int, ...])


class Receipts(Generic[Count]):
    """The numbers of subscribers of the newest publications with a key, or of the newest batches with one, None as long
    as they are being counted. The position of a batch is that of its first publication.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        # The first key of a plain dict is found slowly when many before it were removed.
        self._found: OrderedDict[str, tuple[Position, Count | None]] = OrderedDict()
        self._remembered = remembered

    def begin(self, key: str, position: Position) -> bool:
        """Note the position that a key got. Return False when it is the same as before: nothing was published."""
        if key in self._found and self._found[key][0] == position:
            return False
        self._note(key, position, None)
        return True

    def get(self, key: str) -> Count | None:
        """Return how many subscribers a publication was for, None when that is not known."""
        return self._found[key][1] if key in self._found else None

    def settle(self, key: str, position: Position, subscribers: Count) -> Count:
        """Note how many subscribers it is for, unless a retry has counted them before; return the number that holds."""
        known = self._found.get(key)
        if known is not None and known[0] == position and known[1] is not None:
            return known[1]
        self._note(key, position, subscribers)
        return subscribers

    def _note(self, key: str, position: Position, subscribers: Count | None) -> None:
        self._found[key] = position, subscribers
        if len(self._found) > self._remembered:
            self._found.popitem(last=False)
