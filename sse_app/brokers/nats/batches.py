"""Publishing several drafts: one message after the other, each with an id, since NATS before 2.12 has no batches.

Their keys are claimed first, so that a batch whose key came with something else publishes nothing. What is interrupted
afterwards is completed by who publishes the same batch with the same keys: the server leaves out the messages whose ids
it knows.
"""

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from hashlib import sha256

from sse_app.brokers.nats.entries import content, envelope
from sse_app.brokers.nats.log import Claim, Log
from sse_app.drafts import Drafts
from sse_app.errors import KEY_REUSED, KeyReused
from sse_app.publication import Position


def digest_of(contents: bytes) -> str:
    return sha256(contents).hexdigest()[:32]


def message_id(key: str, digest: str, index: int | None = None) -> str:
    """Return the id of the message of a publication with a key; of one in a batch with a key, by its place in that."""
    place = "" if index is None else f" {index}"
    return digest_of(f"{key} {digest}{place}".encode())


async def publish_batch(log: Log, drafts: Drafts, epoch: str, deadline: float) -> Sequence[Position]:
    """Publish drafts to the log of this epoch, and return their positions. Raises as ``Broker.publish_many``."""
    messages = list(map(envelope, drafts))
    for data in messages:
        log.check_payload(data)
    if drafts.idempotency_key is not None:
        return await _publish_once(log, drafts, drafts.idempotency_key, messages, epoch, deadline)
    return await _publish_each(log, drafts, messages, epoch, deadline)


async def _publish_once(
    log: Log, drafts: Drafts, key: str, messages: Sequence[bytes], epoch: str, deadline: float
) -> Sequence[Position]:
    """Publish a batch with a key of its own."""
    digest = digest_of(b"batch\n" + b"\n".join(map(content, drafts)))  # JSON without line ends
    claim = await log.claim(key, digest, deadline)
    if claim.digest != digest:
        raise KeyReused(KEY_REUSED)
    known = _positions(claim.places)
    if known and known[0].epoch == epoch:
        return known
    ids = (message_id(key, digest, index) for index in range(len(messages)))
    stored = await log.append_all(list(zip(messages, ids, strict=True)), deadline)
    positions = [position for position, _ in stored]
    if not all(duplicate for _, duplicate in stored):
        await log.remember(key, digest, _places(positions))
    return positions


async def _publish_each(
    log: Log, drafts: Drafts, messages: Sequence[bytes], epoch: str, deadline: float
) -> Sequence[Position]:
    """Publish drafts each of which may have a key of its own."""
    keys = _digests(drafts)
    of_keys = {key: message_id(key, digest) for key, digest in keys.items()}
    claims = await _claim_all(log, keys, deadline)
    places = ((of_keys[key], Position.parse(claim.places)) for key, claim in claims.items())
    positions = {made: position for made, position in places if position is not None and position.epoch == epoch}
    batch = secrets.token_hex(12)
    ids = [of_keys.get(draft.idempotency_key or "", f"{batch} {index}") for index, draft in enumerate(drafts)]
    missing = {made: data for made, data in zip(ids, messages, strict=True) if made not in positions}
    stored = await log.append_all([(data, made) for made, data in missing.items()], deadline)
    positions |= {made: position for made, (position, _) in zip(missing, stored, strict=True)}
    fresh = {made for made, (_, duplicate) in zip(missing, stored, strict=True) if not duplicate}
    for key, digest in keys.items():
        if of_keys[key] in fresh:
            await log.remember(key, digest, positions[of_keys[key]])
    return [positions[made] for made in ids]


def _digests(drafts: Drafts) -> Mapping[str, str]:
    """Return the digest for each key of these drafts. Raises KeyReused for two publications with one key."""
    digests: dict[str, str] = {}
    for draft in drafts:
        if (key := draft.idempotency_key) is not None:
            digest = digest_of(content(draft))
            if digests.setdefault(key, digest) != digest:
                raise KeyReused(KEY_REUSED)
    return digests


async def _claim_all(log: Log, keys: Mapping[str, str], deadline: float) -> Mapping[str, Claim]:
    """Claim each key for its digest. Raises KeyReused when another publication has one of them; none is kept then."""
    asking = (log.claim(key, digest, deadline) for key, digest in keys.items())
    answers = await asyncio.gather(*asking, return_exceptions=True)
    claims = {key: answer for key, answer in zip(keys, answers, strict=True) if isinstance(answer, Claim)}
    for failure in answers:
        if isinstance(failure, BaseException):
            raise failure
    if any(claim.digest != keys[key] for key, claim in claims.items()):
        await asyncio.gather(*map(log.release, claims.values()))
        raise KeyReused(KEY_REUSED)
    return claims


def _places(positions: Sequence[Position]) -> str:
    """Return positions as they are remembered, ``epoch-7*3,epoch-12*1``: where each run begins, and how long it is."""
    runs: list[tuple[Position, int]] = []
    for position in positions:
        first, count = runs[-1] if runs else (position, 0)
        if position == first._replace(offset=first.offset + count):
            runs[-1:] = [(first, count + 1)]
        else:
            runs.append((position, 1))
    return ",".join(f"{first}*{count}" for first, count in runs)


def _positions(places: bytes) -> Sequence[Position]:
    """Return the positions that are remembered; none for what is no such text."""
    found: list[Position] = []
    for place in places.split(b","):
        match = re.fullmatch(rb"([^*]+)\*([1-9][0-9]{0,3})", place)
        first = match and Position.parse(match[1])
        if not match or first is None:
            return ()
        found += [first._replace(offset=first.offset + index) for index in range(int(match[2]))]
    return found
