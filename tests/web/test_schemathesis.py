"""Requests made from the OpenAPI document, good and bad, against a live server.

FUZZ_REQUESTS says how many in all, about: 50,000 take a quarter of an hour.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import settings
from schemathesis import Case, SerializationContext
from schemathesis.specs.openapi.checks import negative_data_rejection

from tests.support.web import LiveHub, live_hub
from tests.web.test_openapi import DOCUMENT

WITH_INPUT = 7  # operations with parameters; the others have only one request each
EXAMPLES = max(1, int(os.environ.get("FUZZ_REQUESTS", "300")) // WITH_INPUT)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SCHEMA.config.max_stream_events = 1  # the welcome; then the client disconnects
# What characters and segments a topic has no JSON schema can say, nor that `last` and `since` do not go together.
SCHEMA.config.checks.positive_data_acceptance.enabled = False
# Many long topics make a target longer than the limit of a request's head, which is checked first.
SCHEMA.config.checks.negative_data_rejection.expected_statuses = [
    *SCHEMA.config.checks.negative_data_rejection.expected_statuses,
    "431",
]


@schemathesis.serializer("application/x-ndjson")
def lines_of_json(context: SerializationContext, value: Any) -> bytes:
    """Return a body of lines: the text that the schema describes, or any other value as the one line."""
    return value.encode(errors="surrogatepass") if isinstance(value, str) else json.dumps(value).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[LiveHub]:
    with live_hub(drain=0.2, history=1000, head_max=1024**2) as running:
        yield running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES)
@pytest.mark.timeout(60 + EXAMPLES)
def test_every_answer_is_as_documented(case: Case[Any], server: LiveHub, session: requests.Session) -> None:
    # A value of the wrong type, such as `to=false`: in a query or path every value is text, and so this one is valid.
    texts = ("/broadcast", "/connections", "/connections/{client}")
    untyped: list[Any] = [negative_data_rejection] if case.path in texts else []
    case.call_and_validate(base_url=server.url, session=session, excluded_checks=untyped)
