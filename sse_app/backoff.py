"""The pauses between attempts at something that fails: they double up to a bound, and are random in their upper half.

Equal jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): who failed together does not
come back together, and nobody comes back at once.
"""

import random

DOUBLINGS = 32  # beyond any bound; a float cannot be doubled for ever


class Backoff:
    """Seconds to wait after each of several failures in a row.

    first: seconds, the longest wait after the first failure.
    most: seconds, the longest wait of all.
    """

    def __init__(self, first: float, most: float) -> None:
        self.first, self.most = first, most
        self.failures = 0

    def next(self, first: float = 0.0) -> float:
        """Count one more failure, and return the seconds to wait after it. A ``first`` above our own, as a server may
        ask for, is doubled in its place.
        """
        ceiling = min(self.most, max(self.first, first) * 2.0 ** min(self.failures, DOUBLINGS))
        self.failures += 1
        return ceiling * random.uniform(0.5, 1)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self.failures = 0
