"""The bounds of a log are said once: every broker and the settings of a server mean the same."""

from sse_app.brokers.limits import DEFAULTS, Limits
from sse_app.brokers.redis import SCRIPT
from sse_app.config import Config


def test_a_server_has_the_defaults_of_a_log() -> None:
    config = Config()
    named = config.history, config.history_bytes, config.history_age, config.idempotency_window
    assert named == DEFAULTS == Limits.of(None, None, None, None)


def test_what_is_given_takes_the_place_of_a_default() -> None:
    assert Limits.of(5, None, None, 0.5) == DEFAULTS._replace(publications=5, window=0.5)


def test_a_log_in_redis_begins_with_the_same_in_microseconds() -> None:
    first, _, rest = SCRIPT.partition(b"\n")
    assert first == b"local DEFAULTS = {10000, 67108864, 86400000000, 300000000}"
    assert b"DEFAULTS" in rest
