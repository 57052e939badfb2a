"""The OpenAPI document that the app serves is true of the app."""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from starlette.routing import Mount, Route

import sse_app
from sse_app.blocks import LASTS_MAX as BLOCKED_MAX
from sse_app.connections import LIMIT, LIMIT_MAX
from sse_app.drafts import BATCH_MAX
from sse_app.errors import BadInput, Forbidden, InvalidData, Unavailable
from sse_app.events import RESERVED_PREFIX, RESERVED_TYPES, TYPE_MAX
from sse_app.grants import Grant
from sse_app.hub import Hub
from sse_app.joining import LAST_MAX
from sse_app.notices import GapReason
from sse_app.revocations import LASTS_MAX
from sse_app.subscriber import CloseReason
from sse_app.tickets import LIFETIME, LIFETIME_MAX, TTL, TTL_MAX
from sse_app.topics import TOPIC_MAX
from sse_app.web import openapi
from sse_app.web.endpoints import batches
from sse_app.web.endpoints.administration import KICK_PARAMETERS, KICK_USER_PARAMETERS, LIST_PARAMETERS
from sse_app.web.endpoints.batches import BATCH_PARAMETERS
from sse_app.web.endpoints.events import EVENTS_PARAMETERS
from sse_app.web.endpoints.operations import HEALTH
from sse_app.web.problems import ANSWERS, OF_STARLETTE, OF_THE_SERVER, RETRY_AFTER
from tests.support.web import PROBLEM, web

DOCUMENT = openapi.document(HEALTH)
ERRORS_OF_STARLETTE = {(found.status, found.code) for found in OF_STARLETTE}
# Base classes that nothing raises. Unavailable is not among them: a broker may raise it.
NEVER_RAISED = {BadInput, InvalidData, Forbidden}  # by any request
ROUTES = [route for route in Hub().app.routes if isinstance(route, Route)]


def resolve(node: Any) -> Any:
    if isinstance(node, dict) and "$ref" in node:
        found: Any = DOCUMENT
        for key in node["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        return resolve(found)
    return node


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield path, method, {**operation, "parameters": operation.get("parameters", item.get("parameters", []))}


def problems(responses: dict[str, Any]) -> set[tuple[int, str]]:
    found = set()
    for response in map(resolve, responses.values()):
        if PROBLEM in response.get("content", {}):
            _, given = response["content"][PROBLEM]["schema"]["allOf"]
            found |= {(given["properties"]["status"]["const"], code) for code in given["properties"]["code"]["enum"]}
    return found


def documented() -> set[tuple[int, str]]:
    everywhere = [operation["responses"] for _, _, operation in operations()]
    return set().union(*map(problems, [*everywhere, DOCUMENT["components"]["responses"]]))


def schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = DOCUMENT["components"]["schemas"]
    return schemas


def check(schema: dict[str, Any], value: Any) -> None:
    whole = {**schema, "components": DOCUMENT["components"]}
    jsonschema_rs.Draft202012Validator(whole, validate_formats=True).validate(value)


def test_it_is_of_this_version() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == sse_app.__version__


def test_every_route_and_method_is_in_it_and_no_other() -> None:
    routes = {(route.path, method.lower()) for route in ROUTES for method in route.methods or ()}
    described = {(path, method) for path, method, _ in operations()}
    assert described <= routes
    assert {method for _, method in routes - described} == {"head"}  # every GET has a HEAD
    assert [route.path for route in Hub().app.routes if isinstance(route, Mount)] == ["/static"]


@pytest.mark.parametrize(
    ("path", "method", "names", "headers"),
    [
        ("/events", "get", EVENTS_PARAMETERS, ["Last-Event-ID"]),
        ("/events", "head", EVENTS_PARAMETERS, ["Last-Event-ID"]),
        ("/broadcast", "post", BATCH_PARAMETERS, ["Idempotency-Key"]),
        ("/connections", "get", LIST_PARAMETERS, []),
        ("/connections", "delete", KICK_USER_PARAMETERS, []),
        ("/connections/{client}", "delete", KICK_PARAMETERS, []),
    ],
)
def test_the_parameters_are_those_of_the_endpoint(
    path: str, method: str, names: tuple[str, ...], headers: list[str]
) -> None:
    (found,) = [operation["parameters"] for p, m, operation in operations() if (p, m) == (path, method)]
    assert [item["name"] for item in found if item["in"] == "query"] == list(names)
    assert [item["name"] for item in found if item["in"] == "header"] == headers


def test_no_other_operation_has_parameters() -> None:
    with_parameters = {path for path, _, operation in operations() if operation["parameters"]}
    assert with_parameters == {"/events", "/broadcast", "/connections", "/connections/{client}"}


def test_the_error_codes_are_those_that_the_app_and_the_server_answer() -> None:
    ours = {answer for error, answer in ANSWERS.items() if error not in NEVER_RAISED}
    servers = {(refusal.status, refusal.code) for refusal in OF_THE_SERVER}
    assert documented() == ours | servers | ERRORS_OF_STARLETTE


def test_every_error_that_may_come_anywhere_stands_at_every_operation() -> None:
    anywhere = {(400, "bad_host"), (400, "bad_request"), (400, "repeated_header"), (400, "unsafe_upgrade"),
                (403, "bad_origin"),
                (408, "too_slow"), (421, "bad_host"), (431, "head_too_large"), (500, "internal_error"),
                (505, "unsupported_version")}  # fmt: skip
    for path, method, operation in operations():
        if method != "head":
            not_here = {(421, "bad_host")} if path in HEALTH else set()
            assert anywhere & problems(operation["responses"]) == anywhere - not_here, path


def test_every_503_says_when_to_come_back() -> None:
    for _, method, operation in operations():
        if method != "head" and "503" in operation["responses"]:
            assert resolve(operation["responses"]["503"]["headers"]["Retry-After"])["required"]
    assert Unavailable in ANSWERS


def test_every_error_is_a_problem_with_an_example_of_its_own() -> None:
    for _, method, operation in operations():
        for status, response in operation["responses"].items():
            if method != "head" and int(status) >= 400:
                content = resolve(response)["content"]
                assert list(content) == [PROBLEM]
                check(content[PROBLEM]["schema"], content[PROBLEM]["example"])


def test_what_the_errors_of_an_operation_bring_is_as_the_table_says() -> None:
    documented = {
        (method, path, status, name)
        for path, method, operation in operations()
        if method != "head"
        for status, response in operation["responses"].items()
        if int(status) >= 400
        for name in resolve(response).get("headers", {})
    }
    assert {("get", "/events", "503", "Retry-After"), ("post", "/broadcast", "401", "WWW-Authenticate")} <= documented
    assert {("get", "/readyz", "507", "Retry-After"), ("get", "/", "403", "Vary")} <= documented
    for item in DOCUMENT["components"]["headers"].values():
        assert item["required"]
    assert DOCUMENT["components"]["headers"]["Retry-After"]["example"] == RETRY_AFTER


def test_no_key_of_the_source_is_left() -> None:
    assert "problems" not in DOCUMENT["components"]
    assert not [path for path, _, operation in operations() if "problems" in operation]


def test_errors_of_two_statuses_are_not_described_as_one() -> None:
    with pytest.raises(ValueError, match="too many values"):
        openapi._response({"description": "", "errors": ["EmptyBody", "TooLarge"], "example": ""})


def test_head_has_the_statuses_of_get() -> None:
    responses = DOCUMENT["paths"]["/events"]
    assert responses["head"]["responses"].keys() == responses["get"]["responses"].keys()


def test_every_example_is_one() -> None:
    for _, _, operation in operations():
        for parameter in operation["parameters"]:
            given = [item["value"] for item in parameter.get("examples", {}).values()] or [parameter["example"]]
            for value in given:
                check(parameter["schema"], value)
        contents = [resolve(response).get("content", {}) for response in operation["responses"].values()]
        for content in (operation.get("requestBody", {}).get("content", {}), *contents):
            for media in content.values():
                if "example" in media:
                    check(media["schema"], media["example"])
    for schema in schemas().values():
        for example in schema.get("examples", []):
            check(schema, example)


def test_the_limits_are_those_of_the_code() -> None:
    parameters = {(path, item["name"]): item["schema"] for path, _, op in operations() for item in op["parameters"]}
    assert parameters["/events", "last"]["maximum"] == LAST_MAX
    assert (parameters["/connections", "limit"]["maximum"], parameters["/connections", "limit"]["default"]) == (
        LIMIT_MAX,
        LIMIT,
    )
    assert parameters["/connections", "block"]["maximum"] == parameters["/connections/{client}", "block"]["maximum"]
    assert parameters["/connections", "block"]["maximum"] == BLOCKED_MAX
    assert schemas()["Revocation"]["properties"]["for"]["maximum"] == LASTS_MAX
    ticket = schemas()["TicketRequest"]["properties"]
    assert (ticket["ttl"]["maximum"], ticket["ttl"]["default"]) == (TTL_MAX, TTL)
    assert (ticket["expires_in"]["maximum"], ticket["expires_in"]["default"]) == (LIFETIME_MAX, LIFETIME)
    assert parameters["/events", "topic"]["items"]["maxLength"] == TOPIC_MAX
    assert parameters["/broadcast", "topic"]["items"]["maxLength"] == TOPIC_MAX
    assert parameters["/broadcast", "event"]["maxLength"] == TYPE_MAX
    assert parameters["/broadcast", "event"]["not"]["enum"] == sorted(RESERVED_TYPES)
    assert parameters["/broadcast", "event"]["pattern"] == f"^[^{RESERVED_PREFIX}]"
    item = schemas()["BatchItem"]["properties"]
    assert item.keys() == set(batches._Item.__struct_fields__)
    assert item["event"]["maxLength"] == TYPE_MAX
    receipts = schemas()["BatchReceipt"]["properties"]
    assert receipts["ids"]["maxItems"] == receipts["subscribers"]["maxItems"] == BATCH_MAX
    assert schemas()["Gap"]["properties"]["reason"]["enum"] == list(GapReason)
    totals = schemas()["Stats"]["properties"]["totals"]["properties"]
    assert totals["gaps"]["propertyNames"]["enum"] == list(GapReason)
    assert totals["closed"]["propertyNames"]["enum"] == list(CloseReason)
    assert set(schemas()["Bye"]["properties"]["reason"]["enum"]) <= set(CloseReason)


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [
        ("/tickets", "TicketRequest", dict.fromkeys(("user", "topics", "client", "stats"))),
        ("/tickets", "TicketRequest", {"topics": ["a"] * 101}),
        ("/revoke", "Revocation", {"user": "ann", "topics": ["a"] * 101}),
        ("/revoke", "Revocation", {"user": "ann"} | dict.fromkeys(("token", "session", "key", "topics", "for"))),
    ],
)
async def test_a_member_may_be_null_and_a_topic_may_come_twice(path: str, name: str, body: dict[str, Any]) -> None:
    check({"$ref": f"#/components/schemas/{name}"}, body)
    async with web(authorize=lambda request: Grant.of(subscribe=["**"], mint=True, admin=True)) as hub_web:
        assert (await hub_web.client.post(path, json=body)).is_success


async def test_what_the_hub_says_on_a_stream_is_as_described() -> None:
    async with web(drain=0.1) as hub_web:
        await hub_web.post("x", topic="a")
        async with hub_web.stream("/events?topic=a", headers={"Last-Event-ID": "other-1"}) as events:
            notices = [await anext(events) for _ in range(3)]
            await hub_web.hub.drain()
            notices.append(await anext(events))
    for event, name in zip(notices, ("Welcome", "Gap", None, "Bye"), strict=True):
        if name:
            check(schemas()[name], msgspec.json.decode(event.data))


async def test_it_is_served() -> None:
    async with web() as hub_web:
        answer = await hub_web.client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == DOCUMENT
