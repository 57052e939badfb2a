"""The OpenAPI document of the app, made of ``openapi.json`` and the one table of errors.

``openapi.json`` is the document without error responses. In their place an operation has ``problems``: for each status
a description and the names of its errors, the first of which has the text of an example. Problems of every operation
are in ``components``. An error is named by its class (``errors.py``), another problem by its code; status, header
fields and schema come from ``problems.py``.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

import sse_app
from sse_app.web.problems import ANSWERS, MEDIA_TYPE, OF_STARLETTE, OF_THE_SERVER, Problem, body_of, headers_of

Node = dict[str, Any]  # of JSON

SOURCE = Path(__file__).with_name("openapi.json")
ANYWHERE = (
    "BadRequest",
    "BadOrigin",
    "HeadTooSlow",
    "UnknownHost",
    "HeadTooLarge",
    "InternalError",
    "UnsupportedVersion",
)
ERRORS = {kind.__name__: kind for kind in ANSWERS}
OTHERS = {found.code: found for found in reversed((*OF_THE_SERVER, *OF_STARLETTE))}  # of two, the first is the example


def document(any_host: Collection[str]) -> Node:
    """Return the document. At the paths ``any_host`` every Host is answered."""
    made: Node = msgspec.json.decode(SOURCE.read_bytes())
    made["info"]["version"] = sse_app.__version__
    shared: dict[str, Node] = made["components"].pop("problems")
    made["components"]["responses"] = {name: _response(problem) for name, problem in shared.items()}
    for path, item in made["paths"].items():
        here = {name: shared[name] for name in ANYWHERE if name != "UnknownHost" or path not in any_host}
        for method in item.keys() & {"get", "post", "delete"}:
            _add_problems(item[method], here)
        if "head" in item:
            item["head"]["responses"] |= _without_body(item["get"]["responses"])
    return made


def _add_problems(operation: Node, shared: Mapping[str, Node]) -> None:
    """Give an operation its own error responses and the shared ones. Where both have a status, the operation's response
    has the errors of both, and its own description.
    """
    own = {_status(problem): problem for problem in operation.pop("problems", ())}
    found: Node = {}
    for name, problem in shared.items():
        if mine := own.get(_status(problem)):
            mine["errors"] += problem["errors"]
        else:
            found[_status(problem)] = {"$ref": f"#/components/responses/{name}"}
    found |= {status: _response(problem) for status, problem in own.items()}
    operation["responses"] |= dict(sorted(found.items()))


def _without_body(responses: Node) -> Iterator[tuple[str, Node]]:
    """Return the error responses to HEAD, made of those to GET. The server's own answers have a body all the same."""
    always = {str(found.status) for found in OF_THE_SERVER} - {"400"}
    for status in responses.keys() - {"200"}:
        yield status, {"description": "As for GET." if status in always else "As for GET, without a body."}


def _response(problem: Node) -> Node:
    """Return a problem of ``openapi.json`` as a response."""
    first, status = problem["errors"][0], int(_status(problem))
    given = OTHERS[first] if first in OTHERS else Problem(status, ANSWERS[ERRORS[first]][1], problem["example"])
    headers = {"Allow"} if status == 405 else set(headers_of(ERRORS[first])) if first in ERRORS else set()
    response: Node = {"description": problem["description"]}
    if headers:
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in sorted(headers)}
    schema = {"status": {"const": status}, "code": {"enum": sorted(set(_codes(problem["errors"])))}}
    media = {"schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, {"properties": schema}]}}
    return response | {"content": {MEDIA_TYPE: {**media, "example": body_of(given)}}}


def _status(problem: Node) -> str:
    """Return the status of all the errors of a problem. Raises ValueError when the table has more than one for them."""
    (status,) = {_answer(name)[0] for name in problem["errors"]}
    return str(status)


def _codes(names: Iterable[str]) -> Iterator[str]:
    return (_answer(name)[1] for name in names)


def _answer(name: str) -> tuple[int, str]:
    return ANSWERS[ERRORS[name]] if name in ERRORS else OTHERS[name][:2]
