"""The doctor against a real nginx: every planted fault is found, and only it; a good set-up has none."""

import pytest

from sse_app.doctor import CHECKS, DoctorFailed, Finding, Verdict, examine
from tests.doctor.conftest import ORIGIN, Nginx
from tests.support.peers import PATIENCE


def found(findings: list[Finding]) -> dict[str, Finding]:
    """The findings that ask for a change, by check."""
    return {finding.check: finding for finding in findings if finding.asks_for_a_change}


async def test_a_good_set_up_has_no_finding(nginx: Nginx) -> None:
    findings = await examine(nginx.url("good"), origin=ORIGIN, idle=3)
    of_tokens = dict.fromkeys(("token", "ticket"), Verdict.NOT_CHECKED)
    assert [(finding.check, finding.verdict) for finding in findings] == [
        (check, of_tokens.get(check, Verdict.OK)) for check in CHECKS
    ]


@pytest.mark.parametrize(
    ("location", "check", "verdict", "setting"),
    [
        ("buffered", "buffering", Verdict.PROBLEM, "proxy_buffering off;"),
        ("compressed", "compression", Verdict.PROBLEM, "gzip off;"),
        ("impatient", "idle", Verdict.PROBLEM, "proxy_read_timeout 1h;"),
        ("no-cursor", "resume", Verdict.PROBLEM, "$http_last_event_id"),
        ("no-cors", "cors", Verdict.PROBLEM, "proxy_hide_header Access-Control-Allow-Origin"),
        ("double-cors", "cors", Verdict.PROBLEM, "no `add_header`"),
        ("small", "body", Verdict.PROBLEM, "client_max_body_size"),
        ("wrong-host", "reach", Verdict.PROBLEM, "proxy_set_header Host $http_host;"),
        ("untouched", "host", Verdict.WARNING, "proxy_set_header Host $http_host;"),
        ("without-port", "host", Verdict.WARNING, "$host is without the port"),
        ("clinging", "end", Verdict.WARNING, "proxy_ignore_client_abort off;"),
        ("cacheable", "headers", Verdict.WARNING, "proxy_hide_header Cache-Control"),
        ("no-query", "reach", Verdict.PROBLEM, "$is_args$args"),
        ("two-logs", "log", Verdict.PROBLEM, "upstream"),
        ("prefixed", "reach", Verdict.PROBLEM, "with both slashes"),
        ("nobody", "reach", Verdict.PROBLEM, "proxy_pass"),
        ("guarded", "reach", Verdict.PROBLEM, "deny"),
        ("moved", "reach", Verdict.PROBLEM, "proxy_pass"),
        ("a-page", "reach", Verdict.PROBLEM, "proxy_pass"),
    ],
)
async def test_a_planted_fault_is_found_and_only_it(
    nginx: Nginx, location: str, check: str, verdict: Verdict, setting: str
) -> None:
    idle = PATIENCE if check == "idle" else 1  # seconds; the check ends as soon as the stream is cut
    findings = await examine(nginx.url(location), origin=ORIGIN, idle=idle)
    changes = found(findings)
    if check == "cors":
        assert changes.pop("preflight").verdict == Verdict.PROBLEM  # which needs the same header
    [finding] = changes.values()
    assert (finding.check, finding.verdict) == (check, verdict), finding.measured
    assert setting in finding.advice["nginx"]
    assert [finding.check for finding in findings] == list(CHECKS)


async def test_what_could_not_be_checked_is_not_called_ok(nginx: Nginx) -> None:
    held = {finding.check: finding.verdict for finding in await examine(nginx.url("buffered"), origin=ORIGIN, idle=1)}
    streams = ("welcome", "headers", "compression", "resume", "end", "cors", "idle")
    assert {held[check] for check in streams} == {Verdict.NOT_CHECKED}
    refused = await examine(nginx.url("guarded"))
    assert {finding.verdict for finding in refused[1:]} == {Verdict.NOT_CHECKED}


async def test_a_stream_that_was_cut_is_found_without_being_waited_for(nginx: Nginx) -> None:
    assert list(found(await examine(nginx.url("impatient")))) == ["idle"]


@pytest.mark.parametrize("port", ["tls_without_http2", "plain"])
async def test_http_1_1_is_found_with_its_six_connections(nginx: Nginx, port: str) -> None:
    scheme = "http" if port == "plain" else "https"
    [finding] = found(await examine(f"{scheme}://127.0.0.1:{getattr(nginx, port)}", origin=ORIGIN)).values()
    assert (finding.check, finding.verdict) == ("http", Verdict.WARNING)
    assert "at most 6 streams" in finding.measured
    assert "http2 on;" in finding.advice["nginx"]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("prefixed", "404 application/problem+json"),
        ("a-page", "200 text/html"),
        ("moved", "redirects to https://elsewhere.example/events"),
        ("nobody", "502"),
        ("guarded", "403"),
        ("wrong-host", "421 bad_host"),
    ],
)
async def test_what_answers_in_place_of_the_hub_is_named(nginx: Nginx, location: str, words: str) -> None:
    reach, *_ = await examine(nginx.url(location))
    assert words in reach.measured


async def test_a_hub_above_the_given_path_is_pointed_out(nginx: Nginx) -> None:
    reach, *_ = await examine(nginx.url("good/deeper/still"))
    assert reach.measured.endswith(f"But a hub answers at {nginx.url('good/')}.")


async def test_the_address_of_the_stream_is_as_good_as_the_hubs(nginx: Nginx) -> None:
    findings = await examine(nginx.url("good/events"))
    assert findings[0].verdict == Verdict.OK


async def test_a_certificate_that_no_browser_trusts_is_as_good_as_no_answer(
    nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DoctorFailed, match="CERTIFICATE_VERIFY_FAILED"):
        await examine(nginx.url("good"))
