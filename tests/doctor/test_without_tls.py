"""The doctor on the proxies that its page shows, without TLS."""

import pytest

from sse_app.doctor import Verdict, examine
from tests.support.proxies import LISTENS, documented, nginx
from tests.support.web import live_hub
from tests.test_docs import CHECKOUT, Block, blocks

SHOWN = [block for block in blocks(CHECKOUT / "docs" / "doctor.md") if block.language in LISTENS]


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.language)
async def test_a_good_proxy_lacks_tls_alone(block: Block) -> None:
    # Apache notices a disconnect with the second heartbeat; more than 5 s would be a finding.
    with live_hub(heartbeat=1) as hub, documented(block.language, block.text, [hub.port]) as url:
        findings = await examine(url, origin=url)
    left = {finding.check: finding.verdict for finding in findings if finding.verdict != Verdict.OK}
    not_asked = ("token", "ticket", "preflight", "idle")
    assert left == {"http": Verdict.WARNING, **dict.fromkeys(not_asked, Verdict.NOT_CHECKED)}


async def test_a_host_that_lost_its_port_is_a_problem_without_tls() -> None:
    with live_hub() as hub, nginx(f"location / {{ proxy_pass {hub.url}; proxy_set_header Host $host; }}") as url:
        findings = {finding.check: finding for finding in await examine(url)}
    assert findings["host"].verdict == Verdict.PROBLEM
    assert url in findings["host"].measured
    assert findings["buffering"].verdict == Verdict.OK  # all else works, so that users overlook this fault


async def test_a_host_with_the_port_of_nginx_is_as_good() -> None:
    host = "proxy_set_header Host $host:$server_port;"
    with live_hub() as hub, nginx(f"location / {{ proxy_pass {hub.url}; {host} }}") as url:
        findings = {finding.check: finding for finding in await examine(url)}
    assert findings["host"].verdict == Verdict.OK


async def test_what_is_not_the_hubs_answer_says_nothing_of_the_host() -> None:
    guarded = "location = /stats { deny all; }"
    with live_hub() as hub, nginx(f"location / {{ proxy_pass {hub.url}; }} {guarded}") as url:
        findings = {finding.check: finding for finding in await examine(url)}
    assert (findings["host"].verdict, findings["host"].measured) == (Verdict.NOT_CHECKED, "/stats was answered 403")
