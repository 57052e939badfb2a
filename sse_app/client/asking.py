"""Requests that are sent once and answered with one JSON object: statistics, tickets, connections, revocations."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sse_app.client.answers import UNAUTHORIZED, fields, not_a_hub, reason, refused
from sse_app.client.credentials import Credentials, Permit
from sse_app.client.http import TIMEOUT, Http
from sse_app.errors import Unreachable

if TYPE_CHECKING:
    from sse_app.client.http import Response

Parameters = tuple[tuple[str, str], ...]


class Asking:
    """The way of such requests to the hub at ``url``."""

    def __init__(self, http: Http, url: str, credentials: Credentials) -> None:
        self._http, self._url, self._credentials = http, url, credentials

    async def ask(
        self,
        method: str,
        path: str,
        parameters: Parameters = (),
        body: Mapping[str, object] | None = None,
        *,
        expects: int = 200,
    ) -> dict[str, Any]:
        """Return the answer, whose status is the one that the caller ``expects``. Members of the body that are None are
        left out. Raises BadInput for what no URL can carry, Refused, Unreachable.
        """
        request = self._request(method, path, parameters, body)
        permit = Permit(self._credentials)
        await permit.authorize(request)
        response = await self._answered(request)
        if response.status_code == UNAUTHORIZED and permit.renew(refused=True) and await permit.authorize(request):
            response = await self._answered(request)
        return answer_in(response, expects)

    def _request(self, method: str, path: str, parameters: Parameters, body: Mapping[str, object] | None) -> Any:
        target = self._http.target(f"{self._url}/{path}", parameters)
        if body is None:
            return self._http.request(method, target, {}, timeout=TIMEOUT)
        content = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        return self._http.request(
            method, target, {"Content-Type": "application/json"}, timeout=TIMEOUT, content=content
        )

    async def _answered(self, request: Any) -> "Response":
        try:
            response: Response = await self._http.send(request)
        except self._http.transient as error:
            raise Unreachable(f"No answer: {reason(error)}.") from error
        return response


def answer_in(response: "Response", expects: int = 200) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises Refused for another status, and for what is no hub's answer."""
    if response.status_code != expects:
        raise refused(response, response.content)
    if answer := fields(response.content):
        return answer
    raise not_a_hub()
