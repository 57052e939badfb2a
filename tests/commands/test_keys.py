"""Keys as an operator handles them, in a process; and as a hub takes them."""

import hashlib
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sse_app.auth.auth_file import AuthFile
from sse_app.auth.keys import Keys
from sse_app.cli import commands
from sse_app.grants import Grant
from tests.commands.process import on_a_terminal, sse_app


def keys(*arguments: str, path: Path) -> Result:
    return CliRunner().invoke(commands, ["keys", *arguments], env={"SSE_APP_AUTH_FILE": str(path)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.toml"


def test_a_key_is_printed_once_and_its_hash_stored(path: Path) -> None:
    done = sse_app("keys", "add", "till", "--file", str(path), "--publish", "orders/**", "--stats", "own")
    key = done.stdout.rstrip("\n")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert tomllib.loads(path.read_text())["keys"]["till"] == {
        "hash": f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",
        "publish": ["orders/**"],
        "stats": "own",
    }
    for text in (path.read_text(), done.stderr, sse_app("keys", "list", "--file", str(path)).stdout):
        assert key not in text
        assert key.removeprefix("ssk_till_") not in text


def test_a_hub_takes_what_was_granted(path: Path) -> None:
    options = (
        "--publish a --publish b/* --subscribe ** --no-broadcasts --stats all --mint --admin --client t-* --user u"
    )
    key = keys("add", "ops", *options.split(), path=path).stdout.strip()
    granted = Keys(AuthFile.read(path).keys).find(key)
    assert granted is not None
    wanted = Grant.of(
        publish=("a", "b/*"),
        subscribe=("**",),
        broadcasts=False,
        stats="all",
        mint=True,
        admin=True,
        client="t-*",
        user="u",
    )
    assert granted == replace(wanted, source="ops")


def test_keys_are_listed_as_lines_as_json_and_as_a_table(path: Path) -> None:
    keys("add", "b", "--publish", "[a]/**", "--publish", "c", "--mint", path=path)
    keys("add", "a", "--subscribe", "**", "--no-broadcasts", "--stats", "all", "--admin", "--user", "u", path=path)
    assert keys("list", path=path).stdout.splitlines() == [
        "b\t[a]/**, c\t-\tmint\t-\t-",
        "a\t-\t** (no broadcasts)\tstats all, admin\t-\tu",
    ]
    shown = json.loads(keys("list", "--json", path=path).stdout)
    assert shown["b"] == {
        "user": None,
        "client": None,
        "publish": ["[a]/**", "c"],
        "subscribe": None,
        "broadcasts": False,
        "stats": "none",
        "mint": True,
        "admin": False,
    }
    status, screen = on_a_terminal("keys", "list", "--file", str(path))
    rows = [line.split() for line in re.sub(r"\x1b\[\d*m", "", screen).splitlines()]
    assert (status, rows[0]) == (0, ["key", "publish", "subscribe", "beside", "client", "user"])
    assert rows[1][:3] == ["b", "[a]/**,", "c"]


def test_a_key_is_removed_and_all_else_stays(path: Path) -> None:
    keys("add", "old", "--publish", "a", path=path)
    path.write_text("# ours\n" + path.read_text())
    before = path.read_text()
    keys("add", "new", "--publish", "a", path=path)
    done = keys("remove", "new", path=path)
    assert (done.exit_code, done.output) == (0, "")
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "till"], "It grants nothing"),
        (["add", "till", "--mint"], "It grants nothing"),
        (["add", "till", "--publish", "a", "--no-broadcasts"], "--no-broadcasts"),
        (["add", "_till", "--publish", "a"], "The name of a key"),
        (["add", "open", "--publish", "a"], "names of their own"),
        (["add", "there", "--publish", "a"], "NAME-2"),
        (["add", "till", "--publish", "a\x07"], "topic"),
        (["add", "till", "--admin", "--client", "a b"], "client name"),
        (["add", "till", "--admin", "--user", "a b"], "user name"),
        (["add", "till", "--stats", "none"], "none"),
        (["remove", "till"], "no key of this name"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage_and_changes_nothing(path: Path, arguments: list[str], says: str) -> None:
    keys("add", "there", "--publish", "a", path=path)
    before = path.read_bytes()
    done = keys(*arguments, path=path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
    assert path.read_bytes() == before


def test_a_file_has_to_be_named_and_to_be_there(path: Path) -> None:
    assert "--file" in CliRunner().invoke(commands, ["keys", "list"]).stderr
    for command in (["list"], ["remove", "till"]):
        done = keys(*command, path=path)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert not path.exists()
