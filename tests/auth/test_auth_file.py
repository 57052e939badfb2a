import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.auth.auth_file import RESERVED, AuthFile
from sse_app.auth.keys import Key, new_key
from sse_app.errors import ConfigError
from sse_app.grants import Grant
from sse_app.topics import TopicFilter

SECRET, HASH = new_key("till")
FOLDER = Path("/etc/hub")


def parse(text: str) -> AuthFile:
    return AuthFile.parse(text.replace("HASH", f'hash = "{HASH}"'), FOLDER)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    line = str(caught.value)
    assert caught.value.__cause__ is None
    assert "\n" not in line
    assert len(line) < 250
    assert line.startswith("auth_file")
    assert line.endswith(".")
    for secret in (SECRET, HASH, "s3cret"):
        assert secret not in line
    return line


def test_a_key_has_what_the_file_says() -> None:
    file = parse("""
        [keys.till]
        HASH
        publish = ["orders/**"]
        subscribe = ["orders/*", "news"]
        broadcasts = false
        stats = "own"
        mint = true
        admin = true
        client = "till-*"
        user = "till@shop"
        """)
    grant = Grant(
        publish=TopicFilter(("orders/**",)),
        subscribe=TopicFilter(("news", "orders/*"), broadcasts=False),
        stats="own",
        mint=True,
        admin=True,
        client="till-*",
        user="till@shop",
        source="till",
    )
    assert file.keys == {"till": Key(hashlib.sha256(SECRET.encode()).digest(), grant)}
    assert file.issuers == []


def test_a_key_of_which_nothing_is_said_grants_nothing() -> None:
    assert parse("[keys.till]\nHASH").keys["till"].grant == Grant(source="till")
    assert parse("[keys.till]\nHASH\nsubscribe = []").keys["till"].grant == Grant(source="till")


def test_two_asterisks_are_everything() -> None:
    grant = parse('[keys.till]\nHASH\npublish = ["**"]\nsubscribe = ["a", "**"]').keys["till"].grant
    assert grant.publish == grant.subscribe == TopicFilter()


def test_an_empty_file_has_no_keys() -> None:
    assert parse("") == parse("# none yet") == AuthFile({}, [])


def test_issuers_have_what_the_file_says() -> None:
    one, other = parse("""
        [[issuers]]
        name = "main"
        issuer = "https://login.example/"
        audience = ["a", "b"]
        keys = "https://login.example/jwks.json"
        algorithms = ["ES256"]
        claims = ["scope"]

        [[issuers]]
        name = "own"
        issuer = "own"
        secret = ["s3cret-0123456789-0123456789-0123456789", "s3cret-9876543210-0123456789-0123456789"]
        """).issuers
    assert (one.name, one.issuer, one.audience, one.algorithms) == (
        "main", "https://login.example/", ("a", "b"), ("ES256",),
    )  # fmt: skip
    assert (one.keys, one.claims, one.folder) == (("https://login.example/jwks.json",), ("scope",), FOLDER)
    assert (len(other.secrets), other.keys, other.audience, other.claims) == (2, (), (), ("sse", "scope"))


ISSUER = '[[issuers]]\nname = "main"\nissuer = "x"\naudience = "x"\n'
BAD: list[tuple[str, str]] = [
    ("[keys.till", "not valid TOML."),
    ("[keys.till]\nhash = s3cret", "not valid TOML in line 2"),
    ("[keys.till]\nHASH\nHASH", "not valid TOML"),
    ("x = " + "[" * 5_000, "auth_file"),
    ("key = 1", "auth_file has a member that is none of keys, issuers"),
    ("[key.till]\nHASH", "none of keys, issuers"),
    ("keys = 1", "auth_file: keys is a table for each key"),
    ("keys = []", "auth_file: keys is a table for each key"),
    ("[keys]\ntill = 's3cret'", "auth_file: keys.till is a table"),
    ("[keys.'s3cret key']\nHASH", "the name of a key has 1 to 64 characters"),
    ("[keys.'']\nHASH", "the name of a key"),
    ("[keys._till]\nHASH", "the name of a key"),
    (f"[keys.{'x' * 65}]\nHASH", "the name of a key"),
    *((f"[keys.{name}]\nHASH", "names of their own") for name in sorted(RESERVED)),
    ("[keys.till]", "auth_file: keys.till.hash is sha256: and 64 digits"),
    ("[keys.till]\nhash = ''", "keys.till.hash is"),
    ("[keys.till]\nhash = 7", "keys.till.hash is"),
    (f"[keys.till]\nhash = '{SECRET}'", "keys.till.hash is sha256: and 64 digits"),
    (f"[keys.till]\nhash = '{HASH[7:]}'", "keys.till.hash is sha256: and 64 digits"),
    (f"[keys.till]\nhash = '{HASH.upper()}'", "keys.till.hash is sha256: and 64 digits"),
    (f"[keys.till]\nHASH\n{SECRET} = true", "keys.till has a member that is none of hash, publish"),
    ("[keys.till]\nHASH\nsubscibe = ['a']", "keys.till has a member that is none of hash, publish, subscribe"),
    ("[keys.till]\nHASH\npublish = 's3cret'", "keys.till.publish is a list of at most 100 topic filters"),
    ("[keys.till]\nHASH\npublish = [1]", "keys.till.publish is a list"),
    ("[keys.till]\nHASH\npublish = ['']", "keys.till.publish is a list"),
    ("[keys.till]\nHASH\nsubscribe = ['a/**/b']", "keys.till.subscribe is a list"),
    ("[keys.till]\nHASH\nsubscribe = ['**', 'a\u202e']", "keys.till.subscribe is a list"),
    (f"[keys.till]\nHASH\nsubscribe = {[str(n) for n in range(101)]}", "keys.till.subscribe is a list of at most 100"),
    ("[keys.till]\nHASH\nbroadcasts = 1", "keys.till.broadcasts is true or false"),
    ("[keys.till]\nHASH\nstats = 'some'", "keys.till.stats is none, own or all"),
    ("[keys.till]\nHASH\nstats = ['own']", "keys.till.stats is none, own or all"),
    ("[keys.till]\nHASH\nmint = 'yes'", "keys.till.mint is true or false"),
    ("[keys.till]\nHASH\nadmin = 'no'", "keys.till.admin is true or false"),
    ("[keys.till]\nHASH\nuser = 's3cret user'", "keys.till.user is the name of a user"),
    ("[keys.till]\nHASH\nuser = 42", "keys.till.user is the name of a user"),
    ("[keys.till]\nHASH\nclient = 's3cret@x'", "keys.till.client is a client name"),
    ("issuers = 1", "auth_file: issuers is tables, [[issuers]]"),
    ("[issuers]\nname = 'x'", "auth_file: issuers is tables, [[issuers]]"),
    ("issuers = [1]", "each of the issuers has a name"),
    ("[[issuers]]\nsecret = 's3cret'", "each of the issuers has a name"),
    ("[[issuers]]\nname = 's3cret name'", "each of the issuers has a name"),
    (f"{ISSUER}secrets = ['s3cret']", "issuers.main has a member that is none of name, issuer"),
    (f"{ISSUER}secret = 's3cret'", "auth_file: issuers.main.secret is at least 32 bytes"),
    ("[[issuers]]\nname = 'main'\naudience = []\nsecret = 's3cret'", "issuers.main.audience is the aud"),
    (f"{ISSUER}keys = []", "issuers.main.keys is PEM"),
    (f"{ISSUER}secret = 7", "issuers.main.secret is a text or a list of texts"),
    (f"{ISSUER}keys = ['']", "issuers.main.keys is PEM"),
    (f"{ISSUER}keys = 'http://login.example/s3cret'", "issuers.main.keys is PEM, the path"),
    (f"{ISSUER}", "issuers.main.keys is needed, or auth_file: issuers.main.secret"),
    (f"{ISSUER}keys = 'a'\nalgorithms = ['s3cret']", "issuers.main.algorithms is a list of HS256"),
    (f"{ISSUER}keys = 'a'\nclaims = 'sse,scope'", "issuers.main.claims is a list of sse, scope, mercure"),
    (f"{ISSUER.replace('main', 'anonymous')}keys = 'a'", "names of their own"),
    (f"{ISSUER}keys = 'a'\n[keys.main]\nHASH", "names of their own"),
    (f"{ISSUER}keys = 'a'\n{ISSUER}keys = 'b'", "names of their own"),
    ("[[issuers]]\nname = 'main'\nissuer = 7\nkeys = 'a'", "issuers.main.issuer is the iss of its tokens"),
    ("[[issuers]]\nname = 'main'\naudience = 7\nkeys = 'a'", "issuers.main.audience is the aud"),
    ("[[issuers]]\nname = 'main'\nkeys = 'https://a.example/'", "issuers.main.issuer is needed with public keys"),
]


@pytest.mark.parametrize(("text", "why"), BAD, ids=lambda value: ascii(value)[:60])
def test_a_mistake_is_answered_with_one_line_that_names_its_place(text: str, why: str) -> None:
    assert why in refusal(text)


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(codec="ascii", min_codepoint=32), max_size=9),
    lambda values: st.lists(values, max_size=3),
    max_leaves=4,
)


MEMBERS = (
    "hash publish subscribe broadcasts stats mint admin client user name issuer audience keys secret algorithms claims"
)


@given(st.dictionaries(st.sampled_from(MEMBERS.split()), VALUES))
def test_whatever_a_member_is_it_is_taken_or_refused(members: dict[str, Any]) -> None:
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in members.items())
    for table in (f"[keys.till]\n{lines}", f"[[issuers]]\n{lines}", f"keys = {json.dumps(list(members.values()))}"):
        with suppress(ConfigError):
            AuthFile.parse(table, FOLDER)


def test_a_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "hub.toml"
    path.write_text("")
    for mode in (0o600, 0o640, 0o660, 0o400):
        path.chmod(mode)
        assert AuthFile.read(path) == AuthFile({}, [])
    for mode in (0o644, 0o604, 0o602, 0o601, 0o777):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=r"^auth_file names a file that others can read or write"):
            AuthFile.read(path)


@pytest.mark.parametrize("content", [b"\xff\xfe[keys.till]", b"#" * (1024 * 1024 + 1), None, "folder"], ids=str)
def test_what_is_no_file_of_text(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "s3cret"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"^auth_file names a") as caught:
        AuthFile.read(path)
    assert "s3cret" not in str(caught.value)
