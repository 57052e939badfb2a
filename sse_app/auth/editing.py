"""Edits of ``auth_file``: a key is added or removed, and everything else stays as it is written, byte for byte.

The text is edited, since no library writes TOML with its comments. Each edit is then checked by what the text says: it
has to say what it said before and the one change, else nothing is written.
"""

import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE

from sse_app.auth.auth_file import AuthFile
from sse_app.errors import ConfigError

Members = Mapping[str, str | bool | list[str]]

BY_HAND = "auth_file has its keys in another form than tables [keys.NAME]: edit it by hand."


def with_key(text: str, name: str, members: Members) -> str:
    """Return the text of a file with one key more. Raises ConfigError."""
    before = _keys(text)
    if name in before:
        raise ConfigError(
            "auth_file has a key of this name. To rotate it add one beside it, such as NAME-2, hand that out, and"
            " remove the old one."
        )
    end = "\r\n" if "\r\n" in text else "\n"
    lines = [f"[keys.{name}]", *(f"{member} = {_toml(value)}" for member, value in members.items()), ""]
    whole = text if text.endswith("\n") or not text else text + end
    after = whole + (end if text else "") + end.join(lines)
    if not _says(after, text, {**before, name: dict(members)}):
        raise ConfigError(BY_HAND)
    return after


def without_key(text: str, name: str) -> str:
    """Return the text of a file without a key. Comments before its table and behind it stay. Raises ConfigError."""
    before = _keys(text)
    if name not in before:
        raise ConfigError("auth_file has no key of this name; `sse-app keys list` shows them.")
    wanted = {other: table for other, table in before.items() if other != name}
    for after in _without_table(text.split("\n"), name):
        if _says(after, text, wanted):
            return after
    raise ConfigError(BY_HAND)


def edit(path: Path, change: Callable[[str], str], *, create: bool = False) -> AuthFile:
    """Change the text of the file at this path, and return what it says now. With ``create`` a file that is not there
    is made, for its owner alone. Other edits wait, and hubs see the one text or the other. Raises ConfigError, and then
    nothing is changed.
    """
    path = path.resolve()  # a symbolic link goes on to point to the file
    try:
        with _locked(path.parent):
            there = path.exists() or not create
            if there:
                AuthFile.read(path)
            text = change(path.read_bytes().decode() if there else "")
            file = AuthFile.parse(text, path.parent)
            _replace(path, text.encode())
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"auth_file cannot be changed: {why}.") from None
    return file


def _keys(text: str) -> dict[str, object]:
    """Return the tables of the keys. Raises ConfigError for a text that a hub would not take."""
    AuthFile.parse(text, Path())
    keys: dict[str, object] = tomllib.loads(text).get("keys", {})
    return keys


def _says(after: str, before: str, keys: Mapping[str, object]) -> bool:
    """Return True when a text says what another one says, but for its keys, which are these."""
    try:
        said = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        return False
    expected = tomllib.loads(before)
    return said.pop("keys", {}) == keys and said == {name: expected[name] for name in expected if name != "keys"}


def _without_table(lines: list[str], name: str) -> Iterator[str]:
    """Yield the texts without what may be the table of a key. A line in a text of several lines may look like the
    beginning of a table: more than one place comes into question.
    """
    header = re.compile(rf"""[ \t]*\[[ \t]*keys[ \t]*\.[ \t]*(["']?){re.escape(name)}\1[ \t]*\][ \t]*(#.*)?\r?""")
    beginnings = [number for number, line in enumerate(lines) if line.lstrip().startswith("[")]
    for first in beginnings:
        if not header.fullmatch(lines[first]):
            continue
        start = first - 1 if first and not lines[first - 1].strip() else first  # with the empty line before it
        for end in [*(number for number in beginnings if number > first), len(lines)]:
            while re.fullmatch(r"\s*(#.*)?", lines[end - 1]):  # of what follows
                end -= 1
            yield "\n".join([*lines[:start], *lines[end:]])


def _toml(value: str | bool | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)  # a text, a list of texts or a bool is the same in TOML


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time edit files in a directory. Windows has no such lock."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)  # the names in it
    finally:
        os.close(handle)


def _replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of the one at this path, with its owner and mode, else with mode 0600."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            if path.exists():
                _take_over(handle, path.stat())
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _take_over(handle: int, former: os.stat_result) -> None:
    """Give a file the owner and mode of the former one. Raises OSError for an owner that this user cannot give it: the
    hub, which may run as another one, could not read it any more.
    """
    if sys.platform != "win32":
        now = os.fstat(handle)
        if (now.st_uid, now.st_gid) != (former.st_uid, former.st_gid):
            os.fchown(handle, former.st_uid, former.st_gid)
        os.fchmod(handle, S_IMODE(former.st_mode))
