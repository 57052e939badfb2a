"""The answers to single requests: the protocol, the Host, compression, CORS, and how large a body may be."""

import asyncio
import ssl

import httpx

from sse_app.doctor.advice import ADVICE
from sse_app.doctor.finding import Finding, Verdict
from sse_app.doctor.visit import ARRIVAL_SECONDS, REQUEST_SECONDS, Visit, error_code, named, reason
from sse_app.errors import NotChecked

BODY = 200 * 1024  # bytes; a hub takes 256 KiB by default
BROWSER_ENCODINGS = "gzip, deflate, br, zstd"


async def host(visit: Visit) -> Finding:
    """Check that the hub accepts requests of its own pages. Browsers on HTTPS mark them (Sec-Fetch-Site); without TLS,
    and for older browsers, the hub compares Origin and Host, port included.
    """
    own = visit.own_origin
    answer = await visit.get("stats", {"Origin": own})
    code = error_code(answer)
    if answer.status_code == 200 or code == "insufficient_scope":
        return Finding("host", Verdict.OK, "the hub is sent the Host that browsers ask for")
    if code != "bad_origin":
        raise NotChecked(f"/stats was answered {named(answer)}")
    verdict = Verdict.PROBLEM if visit.url.scheme == "http" else Verdict.WARNING
    who = "pages" if visit.url.scheme == "http" else "older browsers' pages"
    text = f"{who} of {own} are refused (403 bad_origin): the hub is sent another Host, or one without the port"
    return Finding("host", verdict, text, ADVICE["host"])


async def http(visit: Visit) -> Finding:
    """Check which HTTP version browsers get. Over HTTP/1.1 they keep six connections to an origin, streams included."""
    six = "a browser opens at most 6 streams to this name, over all its tabs"
    if visit.url.scheme == "http":
        return Finding("http", Verdict.WARNING, f"without TLS browsers speak HTTP/1.1: {six}", ADVICE["http"])
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            _, writer = await asyncio.open_connection(visit.url.raw_host.decode(), visit.url.port or 443, ssl=context)
    except OSError as error:  # TimeoutError and the errors of TLS are some
        raise NotChecked(f"no direct connection: {error or 'timeout'}") from None
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    chosen = tls.selected_alpn_protocol()
    writer.transport.abort()
    if chosen == "h2":
        return Finding("http", Verdict.OK, "HTTP/2: a browser's streams share one connection")
    return Finding("http", Verdict.WARNING, f"no HTTP/2 offered: {six}", ADVICE["http"])


async def compression(visit: Visit) -> Finding:
    """Check that a stream is not compressed for clients that accept it, as browsers do. The hub never compresses."""
    visit.require_streams()
    async with visit.stream(headers={"Accept-Encoding": BROWSER_ENCODINGS}) as stream:
        encoding = (await visit.opened(stream)).headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return Finding("compression", Verdict.OK, "the stream is not compressed")
    text = "the stream is compressed, which collects events and holds a compressor for each reader"
    return Finding("compression", Verdict.PROBLEM, text, ADVICE["compression"])


async def cors(visit: Visit) -> Finding:
    """Check that a page of the given origin may read the stream. EventSource sends no preflight."""
    if visit.origin is None:
        raise NotChecked("give the origin of a page: --origin https://app.example")
    visit.require_streams()
    async with visit.stream(headers={"Origin": visit.origin}) as stream:
        response = await visit.opened(stream)
        await stream.until(lambda: stream.is_events, ARRIVAL_SECONDS)  # or until its body is read
        code = error_code(response, stream.body)
    allowed = response.headers.get_list("access-control-allow-origin")
    if response.status_code == 403:
        text = f"the hub does not know {visit.origin} (403 {code})" if code else f"{visit.origin} is refused (403)"
        return Finding("cors", Verdict.PROBLEM, text, ADVICE["cors"])
    if not stream.is_events:
        raise NotChecked(f"its stream was answered {response.status_code} {code}".rstrip())
    if visit.origin == visit.own_origin or allowed in (["*"], [visit.origin]):
        return Finding("cors", Verdict.OK, f"a page of {visit.origin} may read the stream")
    what = "is given more than once" if len(allowed) > 1 else "names another origin" if allowed else "is missing"
    text = f"Access-Control-Allow-Origin {what}: browsers keep the stream from a page of {visit.origin}"
    return Finding("cors", Verdict.PROBLEM, text, ADVICE["cors"])


async def body(visit: Visit) -> Finding:
    """Check that a publication of nearly the largest size that the hub takes gets through."""
    await visit.publish("a small one")
    size = f"{BODY // 1024} KiB"
    try:
        answer = await visit.post("x" * BODY)
    except httpx.HTTPError as error:
        text = f"the connection broke while a body of {size} was sent: {reason(error)}"
        return Finding("body", Verdict.PROBLEM, text, ADVICE["body"])
    code = error_code(answer)
    if answer.status_code == 200 or code == "too_large":
        text = f"a body of {size} arrives" if not code else f"the hub itself takes less than {size} (body_max)"
        return Finding("body", Verdict.OK, text)
    if code:
        raise NotChecked(f"the hub answered {named(answer)}")
    text = f"a body of {size} is answered {answer.status_code}, and not by the hub"
    return Finding("body", Verdict.PROBLEM, text, ADVICE["body"])
