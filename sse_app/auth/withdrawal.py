"""Withdrawals: credentials that counted and no longer do, so that their streams are to end."""

from dataclasses import dataclass

from sse_app.grants import Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """Grants that are out of date: all of these ``sources`` (names of keys and issuers), and those of tokens that these
    ``keys`` have signed, each an issuer and the id of its key.

    ``changed``: the credential counts as before, and grants something else now. Its streams are to come back and get
    that. Else the credential is gone.
    """

    sources: frozenset[str] = frozenset()
    keys: frozenset[tuple[str, str]] = frozenset()
    changed: bool = False

    def __bool__(self) -> bool:
        return bool(self.sources or self.keys)

    def covers(self, grant: Grant) -> bool:
        """Return True when a grant is of such a credential."""
        return grant.source in self.sources or (grant.key is not None and (grant.source, grant.key) in self.keys)
