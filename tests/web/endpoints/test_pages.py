"""The console and its files."""

import pytest

from sse_app.web.endpoints.pages import CONTENT_SECURITY_POLICY
from tests.support.web import Web, code_of


async def test_the_console_comes_with_a_policy_that_lets_in_nothing_foreign(hub_web: Web) -> None:
    answer = await hub_web.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize("path", ["app.js", "style.css", "icon.svg"])
async def test_the_console_gets_its_files_from_the_hub_itself(hub_web: Web, path: str) -> None:
    page = await hub_web.client.get("/")
    assert f'"static/{path}"' in page.text
    assert (await hub_web.client.get(f"/static/{path}")).status_code == 200


@pytest.mark.parametrize("path", ["..%2fsse_app%2fapp.py", "%2e%2e/pyproject.toml", "%00", "a" * 5000, "nothing.js"])
async def test_what_is_no_file_of_the_console_is_a_404(hub_web: Web, path: str) -> None:
    assert code_of(await hub_web.client.get(f"/static/{path}")) == (404, "not_found")
