"""The identity provider of the docs: its keys at a URL, and the token that it signs."""

import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sse_app.bench.peers import started
from sse_app.testing import live
from tests.support.peers import PATIENCE
from tests.support.tokens import pair

PAGE = (Path(__file__).parent.parent.parent / "docs" / "auth.md").read_text()
PROVIDER = pair("rsa")


async def keys(request: Request) -> JSONResponse:
    return JSONResponse({"keys": [PROVIDER.jwk("k1")]})


def shown(pattern: str) -> str:
    found = re.search(pattern, PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def grant_of(url: str, claims: dict[str, Any]) -> httpx.Response:
    token = jwt.encode(claims, PROVIDER.private, "RS256", {"kid": "k1"})
    return httpx.get(f"{url}/grant", headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE)


def test_a_token_of_the_identity_provider_grants_what_the_page_says() -> None:
    flags = shlex.split(shown(r"^\$ sse-app serve (--token-keys .*?)$"))
    claims: dict[str, Any] = json.loads(shown(r"^```json\n(.*?)^```$"))
    now = int(time.time())
    claims.update(iat=now, exp=now + claims["exp"] - claims["iat"])
    with live(Starlette(routes=[Route("/jwks.json", keys)])) as provider:
        flags[1] = flags[1].replace("https://login.example.com", provider.url)
        with started((sys.executable, "-m", "sse_app", "serve", "--port", "0", *flags)) as hub:
            grant = grant_of(hub.url, claims).raise_for_status().json()
            elsewhere = grant_of(hub.url, {**claims, "aud": "https://shop.example"})
    assert (grant["user"], grant["expires"]) == (claims["sub"], claims["exp"])
    assert (sorted(grant["subscribe"]), grant["stats"]) == (sorted(claims["sse"]["subscribe"]), claims["sse"]["stats"])
    assert grant["publish"] is None
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (401, "invalid_token")
