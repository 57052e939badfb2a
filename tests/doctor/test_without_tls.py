"""The doctor on proxies without TLS."""

from sse_app.doctor import Verdict, examine
from tests.proxies import nginx
from tests.web import live_hub


async def test_a_host_that_lost_its_port_is_a_problem_without_tls() -> None:
    with live_hub() as hub, nginx(f"location / {{ proxy_pass {hub.url}; proxy_set_header Host $host; }}") as url:
        findings = {finding.check: finding for finding in await examine(url)}
    assert findings["host"].verdict == Verdict.PROBLEM
    assert url in findings["host"].measured
    assert findings["buffering"].verdict == Verdict.OK  # all else works, which is why it is overlooked


async def test_what_is_not_the_hubs_answer_says_nothing_of_the_host() -> None:
    guarded = "location = /stats { deny all; }"
    with live_hub() as hub, nginx(f"location / {{ proxy_pass {hub.url}; }} {guarded}") as url:
        findings = {finding.check: finding for finding in await examine(url)}
    assert (findings["host"].verdict, findings["host"].measured) == (Verdict.NOT_CHECKED, "/stats was answered 403")
