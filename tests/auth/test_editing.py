import os
import stat
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.auth.auth_file import AuthFile
from sse_app.auth.editing import edit, with_key, without_key
from sse_app.auth.keys import new_key
from sse_app.errors import ConfigError

_, HASH = new_key("till")
OTHER = f"[keys.other]\nhash = '{HASH}'  # by hand\npublish = ['a']\n"
ISSUER = '[[issuers]]\nname = "main"\nsecret = """\n[keys.till]\nnot = "a table" # of ours, and 32 bytes long\n"""\n'
TILL: dict[str, Any] = {"hash": HASH, "publish": ["orders/**", 'q"\\ä😀'], "mint": True}


def test_a_key_is_added_behind_all_that_is_there() -> None:
    assert with_key("", "till", {"hash": HASH, "stats": "own"}) == f'[keys.till]\nhash = "{HASH}"\nstats = "own"\n'
    text = f"# ours\n{OTHER}\n{ISSUER}"
    after = with_key(text, "till", TILL)
    assert after.startswith(f"{text}\n[keys.till]\n")
    assert tomllib.loads(after)["keys"]["till"] == TILL


def test_a_last_line_without_an_end_and_lines_of_windows_stay_lines() -> None:
    text = OTHER.rstrip("\n").replace("\n", "\r\n")
    after = with_key(text, "till", {"hash": HASH, "publish": ["a"]})
    assert after == f'{text}\r\n\r\n[keys.till]\r\nhash = "{HASH}"\r\npublish = ["a"]\r\n'
    assert without_key(after, "till") == f"{text}\r\n"


@pytest.mark.parametrize("text", ["", OTHER, ISSUER, f"# a\n\n{OTHER}# b\n{ISSUER}\n\n# the end\n"])
def test_what_was_added_is_removed_without_a_trace(text: str) -> None:
    assert without_key(with_key(text, "till", TILL), "till") == text


@pytest.mark.parametrize(
    "header", ["[keys.till]", '  [ keys . "till" ]  # the till', "[keys.'till']", "[keys.till]# no [end]"]
)
def test_a_table_is_removed_as_it_is_written_and_comments_around_it_stay(header: str) -> None:
    table = f'{header}\nhash = "{HASH}"\n# within\npublish = [\n  "[keys.other]",\n  "a", # and\n]\n\n'
    before, behind = f"{OTHER}\n# before\n", f"# of the issuer\n{ISSUER}"
    assert without_key(before + table + behind, "till") == f"{before}\n{behind}"


@pytest.mark.parametrize(
    "text",
    [
        f'keys.till = {{ hash = "{HASH}" }}\n',
        f'keys = {{ till = {{ hash = "{HASH}" }} }}\n',
        f'[keys]\ntill = {{ hash = "{HASH}" }}\n',
        f'[keys]\ntill.hash = "{HASH}"\n',
    ],
)
def test_keys_in_another_form_are_left_to_their_author(text: str) -> None:
    with pytest.raises(ConfigError, match="by hand"):
        without_key(text, "till")


def test_a_key_is_not_added_to_an_inline_table() -> None:
    with pytest.raises(ConfigError, match="by hand"):
        with_key(f'keys = {{ other = {{ hash = "{HASH}" }} }}\n', "till", TILL)


def test_a_name_is_there_once_and_rotation_is_another_beside_it() -> None:
    with pytest.raises(ConfigError, match="NAME-2"):
        with_key(OTHER, "other", TILL)
    with pytest.raises(ConfigError, match="no key of this name"):
        without_key(OTHER, "till")


@given(
    st.lists(
        st.sampled_from(
            [OTHER, ISSUER, "# [keys.till]\n", "\n", f'[keys.till]\nhash = "{HASH}"\n', f"[keys.x]\nhash='{HASH}'\n"]
        )
    )
)
def test_every_edit_changes_one_key_and_nothing_else(parts: list[str]) -> None:
    text = "".join(parts)
    try:
        said = AuthFile.parse(text, Path())
    except ConfigError:
        return
    has = "till" in said.keys
    after = without_key(text, "till") if has else with_key(text, "till", TILL)
    now = AuthFile.parse(after, Path())
    assert ("till" in now.keys) is not has
    assert {name: key for name, key in now.keys.items() if name != "till"} == {
        name: key for name, key in said.keys.items() if name != "till"
    }
    assert now.issuers == said.issuers
    assert all(line in after.split("\n") for line in text.split("\n") if "till" not in line and HASH not in line)


# The file


def add(text: str) -> str:
    return with_key(text, "till", TILL)


def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = edit(tmp_path / "hub.toml", add, create=True)
    finally:
        os.umask(before)
    assert file.keys.keys() == {"till"}
    assert stat.S_IMODE((tmp_path / "hub.toml").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["hub.toml"]


def test_a_file_keeps_its_mode_and_a_link_to_it_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "hub.toml"
    real.write_text(OTHER)
    real.chmod(0o640)
    link.symlink_to(real)
    before = real.stat()
    edit(link, add)
    assert link.is_symlink()
    after = real.stat()
    assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid) == (0o640, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino  # replaced, and never half written
    assert real.read_text() == add(OTHER)


def test_the_owner_of_a_file_is_kept_or_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(OTHER)
    file.chmod(0o600)
    given: list[tuple[int, int]] = []

    def chown(handle: int, user: int, group: int) -> None:
        given.append((user, group))
        raise PermissionError(1, "Operation not permitted")

    state = file.stat()
    other = os.stat_result((*state[:4], state.st_uid + 1, *state[5:10]))
    monkeypatch.setattr(os, "fchown", chown)
    monkeypatch.setattr(Path, "stat", lambda path, **options: other if path == file else os.stat(path))
    with pytest.raises(ConfigError, match="not permitted"):
        edit(file, add)
    assert given == [(state.st_uid + 1, state.st_gid)]
    assert file.read_text() == OTHER
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (OTHER, 0o644, "others can read"),
        ("keys = 5", 0o600, "keys is a table"),
        ("[keys.till]\nhsah = 1", 0o600, "keys.till has a member"),
        ("[keys", 0o600, "not valid TOML"),
        (b"\xff", 0o600, "not UTF-8"),
        (None, 0, "cannot be read"),
    ],
)
def test_a_file_that_a_hub_would_not_take_is_not_edited(
    tmp_path: Path, content: str | bytes | None, mode: int, says: str
) -> None:
    file = tmp_path / "hub.toml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        file.chmod(mode)
    with pytest.raises(ConfigError, match=says):
        edit(file, add)
    assert content is None or file.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_what_would_not_be_taken_is_not_written(tmp_path: Path) -> None:
    for change in (lambda text: "[keys.open]\nhash = 'x'\n", lambda text: text + "\ufffe = 1"):
        with pytest.raises(ConfigError):
            edit(tmp_path / "hub.toml", change, create=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="No such file"):
        edit(tmp_path / "nowhere" / "hub.toml", add, create=True)


def test_of_edits_at_once_none_is_lost(tmp_path: Path) -> None:
    def added(number: int) -> None:
        edit(tmp_path / "hub.toml", lambda text: with_key(text, f"k{number}", TILL), create=True)

    threads = [threading.Thread(target=added, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert AuthFile.read(tmp_path / "hub.toml").keys.keys() == {f"k{number}" for number in range(8)}
