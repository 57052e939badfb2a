"""Every proxy has its line for every finding, and the page shows the very lines."""

import re
from pathlib import Path

import pytest

from sse_app.doctor import CHECKS
from sse_app.doctor.advice import ADVICE

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
PROXIES = ["nginx", "Caddy", "Apache", "Cloudflare", "AWS ALB"]


@pytest.mark.parametrize("finding", ADVICE)
def test_every_proxy_is_spoken_of_and_the_page_says_the_same(finding: str) -> None:
    assert [who for who in ADVICE[finding] if who != "hub"] == PROXIES
    rows = "".join(f"| {who} | {what} |\n" for who, what in ADVICE[finding].items())
    [section] = re.findall(rf"\n### {finding}\n(.*?)(?=\n##|\Z)", page(), re.DOTALL)
    assert section.endswith(f"\n\n| who | setting |\n|---|---|\n{rows}")


def test_the_page_has_the_checks_in_their_order() -> None:
    assert re.findall(r"^\| `(\w+)` \|", page().partition("## What it checks")[2], re.MULTILINE) == list(CHECKS)


def page() -> str:
    return PAGE.read_text()
