"""Keys: secrets that the operator has made for publishers, dashboards and other services.

A key is ``ssk_<name>_<43 characters>``, of which the last stand for 256 random bits. The hub knows its SHA-256 alone.
A slow hash would protect nothing: nobody guesses 256 bits.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from sse_app.auth.withdrawal import Withdrawal
from sse_app.grants import Grant

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_KEY = re.compile("ssk_(?P<name>[A-Za-z0-9][A-Za-z0-9_-]{0,63})_[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the hub knows it: the SHA-256 of its text, and what it grants."""

    digest: bytes = field(repr=False)
    grant: Grant


_NOBODY = Key(secrets.token_bytes(32), Grant())  # compared with where there is no such name: the work of a wrong key


class Keys:
    """The keys of a hub, by name."""

    def __init__(self, keys: Mapping[str, Key] | None = None) -> None:
        self._keys = dict(keys or {})

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def find(self, secret: str) -> Grant | None:
        """Return what a key grants; None for a text that is none of these keys. In constant time for each form."""
        form = _KEY.fullmatch(secret)
        if form is None:
            return None
        key = self._keys.get(form["name"], _NOBODY)
        given = hashlib.sha256(secret.encode()).digest()
        return key.grant if hmac.compare_digest(given, key.digest) else None

    def replace(self, keys: Mapping[str, Key]) -> list[Withdrawal]:
        """Take these keys from now on. Returns which of the former are gone, and which grant something else now."""
        before, self._keys = self._keys, dict(keys)
        gone = {name for name, key in before.items() if name not in keys or keys[name].digest != key.digest}
        changed = {name for name, key in before.items() if name not in gone and keys[name].grant != key.grant}
        found = (Withdrawal(sources=frozenset(gone)), Withdrawal(sources=frozenset(changed), changed=True))
        return list(filter(None, found))


def new_key(name: str) -> tuple[str, str]:
    """Return a new key of this name, and its hash as it stands in ``auth_file``."""
    key = f"ssk_{name}_{secrets.token_urlsafe(32)}"
    return key, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
