"""Settings of credentials that cannot be: the server does not start, and says so in one line without a secret."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.test_cli import in_process

SECRET = "a-secret-of-an-operator-0123456789"
SHORT = "too-short-0123456789"
HASH = "sha256:" + hashlib.sha256(b"").hexdigest()
ASYMMETRIC = {"TOKEN_ISSUER": "https://idp.example", "TOKEN_AUDIENCE": "hub"}

SETTINGS: list[tuple[Mapping[str, str], str]] = [
    ({"TOKEN_SECRET": SHORT}, "at least 32 bytes"),
    ({"TOKEN_SECRET": SECRET, "TOKEN_ALGORITHMS": "none"}, "token_algorithms is a list of HS256,"),
    ({"TOKEN_SECRET": SECRET, "TOKEN_ALGORITHMS": "RS256"}, "those that fit its keys: HS256"),
    ({"TOKEN_SECRET": SECRET, "TOKEN_CLAIMS": "all"}, "a list of sse, scope, mercure"),
    ({"TOKEN_SECRET": SECRET, "TOKEN_MAX_AGE": "-1"}, "from 1 to 315,360,000"),
    ({"TOKEN_SECRET": SECRET, "TOKEN_MAX_AGE": "forever"}, "from 1 to 315,360,000"),
    ({"TOKEN_SECRET": SECRET, "AUTH_MAX_AGE": "0"}, "from 1 to 31,536,000"),
    ({"TOKEN_SECRET": SECRET, "TICKET_RECONNECT": "sometimes"}, "bound, never or bearer"),
    ({"TOKEN_SECRET": SECRET, "AUTH_COOKIES": "a b"}, "names of cookies"),
    ({"TOKEN_SECRET": SECRET, "CORS_ORIGINS": "*", "CORS_CREDENTIALS": "1"}, "without *"),
    ({"TOKEN_SECRET": SECRET, "TOKEN_KEYS": SECRET, **ASYMMETRIC}, "give one of them"),
    ({"TOKEN_KEYS": SECRET, **ASYMMETRIC}, "token_keys"),
    ({"TOKEN_KEYS": "http://idp.example/jwks", **ASYMMETRIC}, "an https URL"),
    ({"TOKEN_ISSUER": "https://idp.example"}, "neither token_keys nor token_secret"),
    ({"TOKEN_AUDIENCE": "hub"}, "neither token_keys nor token_secret"),
    ({"AUTH_COOKIES": "session"}, "there is no auth_file, token_keys or token_secret"),
    ({"ANONYMOUS_SUBSCRIBE": "news"}, "for a hub that asks for credentials"),
    ({"TRUSTED_PROXIES": "0.0.0.0/0", "FORWARDED_HEADER": "forwarded"}, "not the network of all addresses"),
    ({"TRUSTED_PROXIES": "10.0.0.300", "FORWARDED_HEADER": "forwarded"}, "networks such as 10.0.0.0/8"),
    ({"TRUSTED_PROXIES": "10.0.0.0/8"}, "needs a forwarded_header"),
    ({"FORWARDED_HEADER": "x-real-ip"}, "x-forwarded-for or forwarded"),
]

FILES = [
    (f"[keys.load\n{SECRET}", "not valid TOML in line 1"),
    (f'[keys.load]\nhash = "{SECRET}"', "sha256: and 64 digits"),
    (f'[keys.load]\nhash = "{HASH}"\npublsh = ["a"]', "none of hash, publish,"),
    (f'[keys.load]\nhash = "{HASH}"\nsubscribe = ["a/**/{SECRET}"]', "topic filters"),
    (f'[keys.load]\nhash = "{HASH}"\nstats = "{SECRET}"', "none, own or all"),
    (f'[keys."{SECRET} "]\nhash = "{HASH}"', "the name of a key"),
    (f'[key.load]\nhash = "{HASH}"', "none of keys, issuers"),
    (f'[[issuers]]\nname = "idp"\nsecret = "{SHORT}"', "at least 32 bytes"),
    (f'[[issuers]]\nname = "idp"\nsecret = "{SECRET}"\nalgorithms = ["{SECRET}"]', "algorithms"),
]


Start = Callable[[Mapping[str, str]], str]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """Start a server with these settings, which refuses them, and return what it says."""

    def start(settings: Mapping[str, str]) -> str:
        for name, value in settings.items():
            monkeypatch.setenv(f"SSE_APP_{name}", value)
        assert in_process("serve", "--port", "0") == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    return start


def check(text: str, said: str, *names: str) -> None:
    """Check one line that begins with one of these settings and says what it may be, and not what it was."""
    assert said in text
    begin, _, rest = text.partition(": ")
    assert begin == "sse-app"
    assert rest.startswith(tuple(f"{name.lower()}{end}" for name in names for end in " :"))
    assert text.count("\n") == 1
    assert SECRET not in text
    assert SHORT not in text


@pytest.mark.parametrize(("settings", "said"), SETTINGS)
def test_settings(start: Start, settings: Mapping[str, str], said: str) -> None:
    check(start(settings), said, *settings)


@pytest.mark.parametrize(("text", "said"), FILES)
def test_auth_file(start: Start, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "auth.toml"
    file.write_text(text)
    file.chmod(0o600)
    check(start({"AUTH_FILE": str(file)}), said, "auth_file")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_an_auth_file_that_others_can_read(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "auth.toml"
    file.write_text(f'[keys.load]\nhash = "{HASH}"\nsubscribe = ["**"]')
    file.chmod(0o644)
    check(start({"AUTH_FILE": str(file)}), "chmod o-rwx", "auth_file")


def test_no_auth_file(start: Start, tmp_path: Path) -> None:
    check(start({"AUTH_FILE": str(tmp_path / "none.toml")}), "cannot be read", "auth_file")
    check(start({"AUTH_FILE": str(tmp_path)}), "a regular file", "auth_file")
