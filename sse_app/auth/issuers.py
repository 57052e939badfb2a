"""Issuers of tokens, ready to check them: their keys have been read, or are fetched."""

from collections.abc import Callable, Mapping, Sequence

from sse_app.auth.files import check_private, read_text
from sse_app.auth.issuer import Issuer, IssuerSettings
from sse_app.auth.jwks import RemoteKeys
from sse_app.auth.signatures import SAME_ID_MAX, InvalidKey, KeySet, VerifyingKey, jwk_set, pem_keys


class StaticKeys(KeySet):
    """Keys that were read once."""

    stale = False

    def __init__(self, keys: Sequence[VerifyingKey], algorithms: Sequence[str]) -> None:
        super().__init__(keys, algorithms)
        self.on_gone: Callable[[frozenset[str]], object] = lambda ids: None  # never called
        self.age = None
        self.failures = 0

    async def refresh(self) -> None:
        return None

    async def run(self) -> None:
        return None


def open_issuer(settings: IssuerSettings, before: Mapping[str, Issuer], jwks_stale: float) -> Issuer:
    """Return an issuer with its keys. Keys of a URL are those that this issuer had ``before``, by name, when its
    settings are the same. Raises ConfigError.
    """
    if settings.url is not None:
        former = before.get(settings.name)
        if former is not None and former.settings == settings:
            return former
        return Issuer(settings, RemoteKeys(settings, stale_after=jwks_stale, former=former.keys if former else ()))
    try:
        found = [VerifyingKey.of_secret(secret.encode()) for secret in settings.secrets]
    except InvalidKey as error:
        raise settings.error("secret", f"no secret to sign with: {error}") from None
    for key in settings.keys:
        found += _read(key, settings)
    _check(found, settings)
    files = tuple(settings.folder / key for key in settings.keys if not _is_pem(key))
    return Issuer(settings, StaticKeys(found, settings.algorithms), files)


def _is_pem(text: str) -> bool:
    return "-----BEGIN" in text


def _read(given: str, settings: IssuerSettings) -> list[VerifyingKey]:
    """Return the keys of PEM, or of a file."""
    text, mode = (given, 0) if _is_pem(given) else read_text(settings.folder / given, f"{settings.place}keys")
    try:
        is_set = text.lstrip().startswith("{")
        found = jwk_set(text.encode(), secrets=True) if is_set else pem_keys(text)
    except InvalidKey as error:
        raise settings.error("keys", f"no key to check tokens with: {error}") from None
    if any(key.is_secret for key in found):
        check_private(mode, f"{settings.place}keys")
    return found


def _check(keys: Sequence[VerifyingKey], settings: IssuerSettings) -> None:
    member = "secret" if settings.secrets else "keys"
    if not keys:
        raise settings.error(member, "PEM with a PUBLIC KEY, or a JWKS with a key for signatures")
    if len({key.fingerprint for key in keys}) < len(keys):
        raise settings.error(member, "a list of different keys, and one is there twice")
    if sum(key.kid is None for key in keys) > SAME_ID_MAX:
        raise settings.error(member, f"at most {SAME_ID_MAX} keys without an id")
    fitting = frozenset[str]().union(*(key.algorithms for key in keys))
    if not set(settings.algorithms) <= fitting:
        raise settings.error("algorithms", f"those that fit its keys: {', '.join(sorted(fitting))}")
    if not all(key.is_secret for key in keys):
        settings.check_bound_to_issuer()
