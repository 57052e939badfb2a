"""Every proxy has a line of advice for every finding, and the documentation shows the same lines."""

import re

import pytest

from sse_app.doctor import CHECKS
from sse_app.doctor.advice import ADVICE
from tests.test_docs import CHECKOUT, blocks

PAGE, PREFIXES = CHECKOUT / "docs" / "doctor.md", CHECKOUT / "docs" / "prefixes.md"
PROXIES = ["nginx", "Caddy", "Apache", "Cloudflare", "AWS ALB"]


@pytest.mark.parametrize("finding", ADVICE)
def test_every_proxy_is_spoken_of_and_the_page_says_the_same(finding: str) -> None:
    assert [who for who in ADVICE[finding] if who != "hub"] == PROXIES
    rows = "".join(f"| {who} | {what} |\n" for who, what in ADVICE[finding].items())
    [section] = re.findall(rf"\n### {finding}\n(.*?)(?=\n##|\Z)", page(), re.DOTALL)
    assert section.endswith(f"\n\n| who | setting |\n|---|---|\n{rows}")


@pytest.mark.parametrize(
    ("finding", "who", "setting"),
    [
        ("buffering", "nginx", "proxy_buffering off;"),
        ("idle", "nginx", "proxy_read_timeout 1h;"),
        ("idle", "Apache", "timeout=3600"),
        ("body", "nginx", "client_max_body_size 1m;"),
        ("host", "nginx", "proxy_set_header Host $http_host;"),
        ("host", "Apache", "ProxyPreserveHost On"),
    ],
)
def test_what_is_advised_is_in_the_proxy_that_is_run(finding: str, who: str, setting: str) -> None:
    assert setting in ADVICE[finding][who]
    assert any(setting in block.text for block in blocks(PAGE) if block.language == who.lower())


@pytest.mark.parametrize(
    ("who", "settings"),
    [
        ("nginx", ["location /hub/ {", "proxy_pass http://127.0.0.1:8000/;"]),
        ("Caddy", ["handle_path /hub/* {", "reverse_proxy 127.0.0.1:8000"]),
        ("Apache", ['ProxyPass "/hub/" "http://127.0.0.1:8000/"']),
    ],
)
def test_the_prefix_that_is_advised_is_taken_off_by_the_proxy_that_is_run(who: str, settings: list[str]) -> None:
    shown = [block.text for block in blocks(PREFIXES) if block.language == who.lower()]
    assert all(setting in ADVICE["path"][who] for setting in settings)
    assert any(all(setting in text for setting in settings) for text in shown)


def test_the_page_has_the_checks_in_their_order() -> None:
    assert re.findall(r"^\| `(\w+)` \|", page().partition("## What it checks")[2], re.MULTILINE) == list(CHECKS)


def page() -> str:
    return PAGE.read_text()
