"""The HTTP requests of a history, and their answers in one line."""

import json
from datetime import UTC, datetime
from urllib.parse import urlencode

from tests.support.corpus.scripts import Draft, StreamRequest


def post_of(draft: Draft) -> tuple[str, bytes, dict[str, str]]:
    """The target, body and headers of a POST that publishes this."""
    topics = [draft.topic] if isinstance(draft.topic, str) else draft.topic or []
    query = [("topic", topic) for topic in topics] + [("to", name) for name in draft.to]
    query += [("exclude", name) for name in draft.exclude]
    if draft.event != "message":
        query.append(("event", draft.event))
    text = draft.data if isinstance(draft.data, str) else json.dumps(draft.data, ensure_ascii=False)
    headers = {"Content-Type": "text/plain" if isinstance(draft.data, str) else "application/json"}
    if draft.key is not None:
        headers["Idempotency-Key"] = draft.key
    return f"/broadcast?{urlencode(query)}", text.encode(), headers


def get_of(asked: StreamRequest, cursor: str | None, now: float) -> tuple[str, dict[str, str]]:
    """The target and headers of the GET for this stream. The client's name decides in which of three ways the cursor is
    sent.
    """
    query = [("topic", topic) for topic in asked.topics]
    headers = {"Accept": "text/event-stream" if asked.client != "ann" else "*/*"}
    if asked.client is not None:
        query.append(("client", asked.client))
    if asked.last is not None:
        query.append(("last", str(asked.last)))
    if asked.since is not None:
        moment = datetime.fromtimestamp(now - asked.since, UTC).isoformat()
        query.append(("since", f"{asked.since:.0f}s" if asked.since > 5 else moment))
    if cursor is not None:
        match asked.client:
            case "ann":
                query.append(("last_event_id", cursor))
            case "bob":
                query.append(("lastEventId", cursor))
            case _:
                headers["Last-Event-ID"] = cursor
    return f"/events?{urlencode(query)}", headers


def outcome_of(status: int, body: str) -> str:
    """An answer in one line: of an error only the code, since its words may be improved."""
    return f"{status} {body if status == 200 else json.loads(body)['code']}"
