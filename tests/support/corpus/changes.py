"""The one change of the wire since the recording, as a rule on what was recorded.

``last`` of a welcome names only those topics of the publication that the stream's own filter matches. What is expected
is not looked up in what the hub answers: it follows from the recorded welcome, which has the filter in it. Nothing was
recorded anew for it.
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
        welcome["last"]["topics"] = [topic for topic in topics if _is_asked_for(topic, welcome["topics"])]
    return _encoded(welcome)


def _encoded(welcome: object) -> str:
    return msgspec.json.encode(welcome).decode().encode("unicode_escape").decode("ascii")


def _is_asked_for(topic: str, patterns: list[str]) -> bool:
    """Written here from the documentation alone, so that a mistake of the hub's is not taken over."""
    return not patterns or any(re.fullmatch(_expression(pattern), topic) for pattern in patterns)


def _expression(pattern: str) -> str:
    *segments, last = pattern.split("/")
    parts = ["[^/]+" if segment == "*" else re.escape(segment) for segment in segments]
    if last != "**":
        return "/".join([*parts, "[^/]+" if last == "*" else re.escape(last)])
    return "/".join(parts) + "(/.*)?" if parts else ".*"
