"""All checks in their order, on one visit."""

from collections.abc import Awaitable, Callable, Mapping

from sse_app.doctor import answers, credentials, delivery, lifetime, opening
from sse_app.doctor.finding import Finding, Verdict
from sse_app.doctor.visit import Visit
from sse_app.errors import NotChecked

Check = Callable[[Visit], Awaitable[Finding]]

# `log` comes before the checks that need one log for two requests, and `idle` last: it may explain cuts in the others.
CHECKS: Mapping[str, Check] = {
    "reach": opening.reach,
    "welcome": opening.welcome,
    "headers": opening.headers,
    "host": answers.host,
    "clock": credentials.clock,
    "token": credentials.token,
    "http": answers.http,
    "compression": answers.compression,
    "log": delivery.log,
    "buffering": delivery.buffering,
    "resume": delivery.resume,
    "end": lifetime.end,
    "ticket": credentials.ticket,
    "cors": answers.cors,
    "preflight": credentials.preflight,
    "body": answers.body,
    "idle": lifetime.idle,
}


async def examine(
    url: str,
    *,
    token: str | None = None,
    publish_key: str | None = None,
    origin: str | None = None,
    idle: float = 0,
    progress: Callable[[str], object] = lambda check: None,
) -> list[Finding]:
    """Examine the way to the hub at ``url``. Return one finding for each of ``CHECKS``, in their order.

    token: what the hub asks its clients for, sent with every request to it
    publish_key: the secret that the hub asks publishers for, sent with publications alone
    origin: of a page that is to read the stream
    idle: seconds for which a stream is watched in silence; 0 leaves that out
    progress: called with the name of each check before it is done

    Raises DoctorRefused for a URL or an origin that is none, and for a token or key that cannot be sent; DoctorFailed
    when nothing answers there. Takes some seconds more than ``idle``, and about a minute where everything is held back.
    """
    visit = Visit(url, token=token, publish_key=publish_key, origin=origin, idle=idle)
    async with visit:
        await visit.take_names()
        async with visit.stream(visit.silent_topic) as visit.first:
            return await _findings(visit, progress)


async def _findings(visit: Visit, progress: Callable[[str], object]) -> list[Finding]:
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        progress(name)
        if findings and findings[0].verdict == Verdict.PROBLEM:
            findings.append(Finding(name, Verdict.NOT_CHECKED, "the hub was not reached; see reach"))
            continue
        try:
            findings.append(await check(visit))
        except NotChecked as why:
            findings.append(Finding(name, Verdict.NOT_CHECKED, str(why)))
    return findings
