"""The one change of the wire since the recording, as a rule on what was recorded.

``last`` of a welcome names only those topics of the publication that the stream's own filter matches. The expectation
does not come from the hub's answer: it follows from the recorded welcome, which holds the filter. So the recording did
not have to be made again.
"""

import json
import re

import msgspec

LAST_NAMES_MATCHED_TOPICS = True

_WELCOME = re.compile(r'^  data: (\{"message":"Welcome!".*\})$', re.MULTILINE)


def with_matched_topics(text: str) -> str:
    """A transcript as it would be had each welcome named only the topics that its filter matches."""
    return _WELCOME.sub(lambda found: f"  data: {_welcome(found[1])}", text)


def _welcome(escaped: str) -> str:
    welcome = json.loads(escaped.encode().decode("unicode_escape"))
    assert _encoded(welcome) == escaped, "a welcome that cannot be written as it was read"
    if welcome["last"] is not None:
        topics = welcome["last"]["topics"]
        welcome["last"]["topics"] = [topic for topic in topics if _matches(topic, welcome["topics"])]
    return _encoded(welcome)


def _encoded(welcome: object) -> str:
    return msgspec.json.encode(welcome).decode().encode("unicode_escape").decode("ascii")


def _matches(topic: str, patterns: list[str]) -> bool:
    """Return True when one of the patterns matches the topic. Written from the documentation, not taken from the hub,
    so that a mistake of the hub's is found.
    """
    return not patterns or any(re.fullmatch(_expression(pattern), topic) for pattern in patterns)


def _expression(pattern: str) -> str:
    *segments, last = pattern.split("/")
    parts = ["[^/]+" if segment == "*" else re.escape(segment) for segment in segments]
    if last != "**":
        return "/".join([*parts, "[^/]+" if last == "*" else re.escape(last)])
    return "/".join(parts) + "(/.*)?" if parts else ".*"
