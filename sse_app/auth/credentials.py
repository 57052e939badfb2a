"""The credentials that a hub takes by its settings: keys of ``auth_file``, and tokens. Their files are read again when
they change.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sse_app.auth import files
from sse_app.auth.auth_file import OWN_ISSUER, RESERVED, AuthFile
from sse_app.auth.issuer import Issuer, IssuerSettings, KeySource, check_together
from sse_app.auth.keys import Key, Keys
from sse_app.auth.tokens import Tokens
from sse_app.auth.waiting import Waiting
from sse_app.auth.withdrawal import Withdrawal
from sse_app.config import Config
from sse_app.errors import INVALID, ConfigError, InvalidToken
from sse_app.grants import Grant

logger = logging.getLogger("sse_app")

LOOK = 5.0  # seconds from one look at the files to the next


class _Loaded(NamedTuple):
    keys: Mapping[str, Key]
    issuers: Sequence[Issuer]
    files: tuple[Path, ...]


class Credentials:
    """The keys and tokens of a hub with these settings. ``run`` keeps them up to date, as long as it runs. Raises
    ConfigError.

    ``on_withdrawal`` is called in the event loop, with credentials whose streams are to end.
    """

    def __init__(self, config: Config, waiting: Waiting | None = None) -> None:
        self.on_withdrawal: Callable[[Withdrawal], object] = lambda withdrawal: None
        self.failures = 0  # changes of the files that could not be taken
        self._config = config
        loaded = self._load({})
        self.keys = Keys(loaded.keys)
        self.tokens = Tokens(loaded.issuers, max_age=config.token_max_age, waiting=waiting)
        self.tokens.on_withdrawal = lambda withdrawal: self.on_withdrawal(withdrawal)
        self._files, self._stamp = loaded.files, files.stamp(loaded.files)

    def gauges(self) -> dict[str, float]:
        """Return what ``GET /metrics`` shows of them: the age of the oldest keys that come from a URL, in seconds, and
        the fetches and files that failed.
        """
        remote = [issuer.keys for issuer in self.tokens.issuers.values()]
        ages = [age for age in (keys.age for keys in remote) if age is not None]
        return {
            "jwks_age_seconds": max(ages, default=0.0),
            "jwks_failures": sum(keys.failures for keys in remote),
            "auth_file_failures": self.failures,
        }

    def kept(self, given: str) -> Grant | None:
        """Return what a key grants, or a token that was verified before; None when ``verify`` has to look."""
        return self.tokens.kept(given) if _is_token(given) else self.keys.find(given)

    async def verify(self, given: str) -> Grant:
        """Return what a token grants that is not ``kept``. Raises InvalidToken, KeysUnavailable, Overloaded.

        All that is no token raises InvalidToken: a key that is not kept is none.
        """
        if not _is_token(given):
            raise InvalidToken(INVALID)
        return await self.tokens.verify(given)

    def counts(self, grant: Grant) -> bool:
        """Return True while the key, or the issuer's key, that a grant came from is there. Such a grant may be older
        than this process: a ticket carries it.
        """
        if (issuer := self.tokens.issuers.get(grant.source)) is not None:
            return grant.key is None or issuer.keys.stale or any(key.id == grant.key for key in issuer.keys)
        return grant.source in self.keys or grant.source in RESERVED - {OWN_ISSUER} or not grant.source

    async def run(self) -> None:
        """Fetch the keys of issuers and look at the files, until cancelled; return when there is nothing to do."""
        running: dict[KeySource, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                current = {issuer.keys for issuer in self.tokens.issuers.values()}
                for keys in running.keys() - current:
                    running.pop(keys).cancel()
                for keys in current - running.keys():
                    running[keys] = tasks.create_task(keys.run())
                if not self._files:
                    break
                await asyncio.sleep(LOOK)
                if await asyncio.to_thread(files.stamp, self._files) != self._stamp:
                    await self.reload()

    async def reload(self) -> None:
        """Read the files again. What is wrong in them is logged, and what was there before stays in force."""
        stamp = await asyncio.to_thread(files.stamp, self._files)
        try:
            loaded = await asyncio.to_thread(self._load, self.tokens.issuers)
        except ConfigError as error:
            self.failures += 1
            self._stamp = stamp
            logger.error("keys and issuers from before stay in force: %s", error)
            return
        # Another file is looked at anew; one that changed since it was read is young, and read once more.
        new_files = loaded.files != self._files
        self._stamp = await asyncio.to_thread(files.stamp, loaded.files) if new_files else stamp
        self._files = loaded.files
        for withdrawal in self.keys.replace(loaded.keys):
            self.on_withdrawal(withdrawal)
        self.tokens.replace(loaded.issuers)

    def _load(self, before: Mapping[str, Issuer]) -> _Loaded:
        config = self._config
        path = None if config.auth_file is None else Path(config.auth_file)
        file = AuthFile({}, ()) if path is None else AuthFile.read(path)
        settings = [*_own_issuer(config), *file.issuers]
        check_together(settings)
        issuers = _open(settings, before, config.jwks_stale)
        read = (path for issuer in issuers for path in issuer.files)
        return _Loaded(file.keys, issuers, (*([] if path is None else [path]), *read))


def _is_token(given: str) -> bool:
    return given.count(".") == 2


def _own_issuer(config: Config) -> list[IssuerSettings]:
    """Return the issuer that the hub's own settings describe, if they do."""
    if config.token_keys is None and config.token_secret is None:
        return []
    return [
        IssuerSettings(
            place="token_",
            name=OWN_ISSUER,
            issuer=config.token_issuer,
            audience=() if config.token_audience is None else (config.token_audience,),
            keys=() if config.token_keys is None else (config.token_keys,),
            secrets=() if config.token_secret is None else (config.token_secret,),
            algorithms=config.token_algorithms,
            claims=config.token_claims,
        )
    ]


def _open(settings: Sequence[IssuerSettings], before: Mapping[str, Issuer], jwks_stale: float) -> list[Issuer]:
    """Return these issuers with their keys. PyJWT is imported only when there are some."""
    if not settings:
        return []
    try:
        from sse_app.auth.issuers import open_issuer
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.startswith("sse_app"):
            raise
        raise ConfigError("Tokens need a package that is not installed: pip install 'sse-app[jwt]'") from None
    return [open_issuer(issuer, before, jwks_stale) for issuer in settings]
