import os
from pathlib import Path
from typing import Any

import pytest

from sse_app.auth.files import read_text, stamp
from sse_app.auth.issuer import IssuerSettings, check_together
from sse_app.auth.issuers import open_issuer
from sse_app.auth.jwks import RemoteKeys
from sse_app.errors import ConfigError
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, jwks, pair

URL = "https://login.example/jwks.json"


def settings(**changed: Any) -> IssuerSettings:
    usual = {"place": "token_", "name": "main", "issuer": ISSUER, "audience": (AUDIENCE,)}
    return IssuerSettings(**{**usual, **changed})


def refusal(**changed: Any) -> str:
    """The one line of the error for settings that are refused."""
    with pytest.raises(ConfigError) as caught:
        open_issuer(settings(**changed), {}, 60.0)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 200
    assert text.endswith(".")
    assert "s3cret" not in text
    assert "MII" not in text
    return text


def test_keys_are_a_secret_or_pem_or_a_set(tmp_path: Path) -> None:
    (tmp_path / "keys.pem").write_text(pair("rsa").public_pem)
    (tmp_path / "keys.json").write_text(jwks(pair("p-256").jwk("k2"), pair("ed25519").jwk("k3")))
    for given, ids in (
        ({"secrets": (SECRET.decode(),)}, 1),
        ({"keys": (pair("rsa").public_pem,)}, 1),
        ({"keys": ("keys.pem",)}, 1),
        ({"keys": (str(tmp_path / "keys.pem"),)}, 1),
        ({"keys": ("keys.pem", "keys.json", pair("p-384").public_pem)}, 4),
    ):
        issuer = open_issuer(settings(folder=tmp_path, **given), {}, 60.0)
        assert len(list(issuer.keys)) == ids
        assert not issuer.keys.stale
    assert issuer.files == (tmp_path / "keys.pem", tmp_path / "keys.json")


@pytest.mark.parametrize(
    "url", [URL, "http://127.0.0.1:9/jwks", "http://[::1]:9/", "http://localhost/", "HTTPS://a.example/"]
)
def test_keys_may_lie_at_a_url(url: str) -> None:
    issuer = open_issuer(settings(keys=(url,)), {}, 60.0)
    assert isinstance(issuer.keys, RemoteKeys)
    assert issuer.keys.stale


def test_the_keys_of_a_url_are_those_that_it_had_before() -> None:
    before = open_issuer(settings(keys=(URL,)), {}, 60.0)
    assert open_issuer(settings(keys=(URL,)), {"main": before}, 60.0) is before
    for changed in ({"audience": ("other",)}, {"keys": (f"{URL}?2",)}):
        assert open_issuer(settings(**{"keys": (URL,), **changed}), {"main": before}, 60.0).keys is not before.keys


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "token_keys is needed"),
    ({"keys": (URL,), "secrets": (SECRET.decode(),)}, "token_keys is needed, or token_secret, and not both"),
    ({"secrets": ("s3cret",)}, "token_secret is at least 32 bytes"),
    ({"secrets": (SECRET.decode(), "s3cret" * 5)}, "token_secret is at least 32 bytes"),
    ({"secrets": (SECRET.decode(), SECRET.decode())}, "twice"),
    ({"secrets": (pair("rsa").public_pem,)}, "no public key"),
    ({"secrets": ("s3cret" * 6,), "algorithms": ("HS512",)}, "those that fit its keys: HS256"),
    ({"secrets": (SECRET.decode(),), "algorithms": ("RS256",)}, "those that fit its keys: HS256, HS384, HS512"),
    ({"keys": (pair("rsa").public_pem,), "algorithms": ("RS256", "HS256")}, "those that fit its keys: PS256"),
    ({"keys": (pair("rsa").public_pem,), "algorithms": ("none",)}, "token_algorithms is a list of HS256, HS384"),
    ({"keys": (pair("rsa").public_pem,), "algorithms": ("rs256",)}, "token_algorithms is a list of"),
    ({"keys": (pair("rsa").public_pem,), "claims": ("roles",)}, "token_claims is a list of sse, scope, mercure"),
    ({"keys": (pair("rsa").public_pem,), "issuer": None}, "token_issuer is needed"),
    ({"keys": (pair("rsa").public_pem,), "audience": ()}, "token_audience is needed"),
    ({"keys": (URL,), "issuer": None}, "token_issuer is needed"),
    ({"keys": (URL,), "audience": ()}, "token_audience is needed"),
    ({"keys": (URL, pair("rsa").public_pem)}, "one URL alone"),
    ({"keys": (URL,), "algorithms": ("HS256",)}, "without HS256"),
    *(
        ({"keys": (url,)}, "token_keys is PEM, the path of a PEM or JWKS file, or an https URL")
        for url in ("http://login.example/", "http://127.0.0.1.nip.example/", "ftp://a.example/", "https://", "https://[",
                    "https://s3cret:s3cret@a.example/", "https://a.example/#x", "https://a.example:0/", "file:///etc/passwd",
                    "https://a.example:99999/", "http://localhost.example/")
    ),
    ({"keys": (pair("rsa").private_pem,)}, "private key"),
    ({"keys": (pair("rsa").public_pem, pair("rsa").public_pem)}, "twice"),
    ({"keys": ("missing.pem",)}, "cannot be read: No such file"),
    ({"keys": (".",)}, "a regular file"),
    ({"keys": ("s3cret\0",)}, "token_keys names a file that"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "why"), BAD, ids=lambda value: str(value)[:60] if isinstance(value, str) else None)
def test_what_cannot_be_honoured_is_refused(changed: dict[str, Any], why: str) -> None:
    assert why in refusal(**changed)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "PUBLIC KEY"), (b"s3cret", "PUBLIC KEY"), (b"\xff\xfe", "not UTF-8"), (b"{}", "no JWK set"),
        (b'{"keys": []}', "PUBLIC KEY"), (b"x" * (1024 * 1024 + 1), "at most 1 MiB"),
        (jwks(pair("rsa").jwk(use="enc")).encode(), "PUBLIC KEY"),
        (jwks(*(pair("rsa").jwk(str(number)) for number in range(101))).encode(), "more than 100"),
        (pair("rsa").public_pem.replace("M", "N", 2).encode(), "damaged"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    assert why in refusal(keys=("keys",), folder=tmp_path)


def test_too_many_keys_without_an_id_are_refused(tmp_path: Path) -> None:
    secrets = tuple(f"{number}{SECRET.decode()}" for number in range(9))
    assert "at most 8 keys" in refusal(secrets=secrets)


def test_a_set_of_secrets_is_private(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(jwks(pair("secret").jwk()))
    path.chmod(0o644)
    assert "chmod o-rwx" in refusal(keys=("keys.json",), folder=tmp_path)
    path.chmod(0o640)
    issuer = open_issuer(settings(keys=("keys.json",), folder=tmp_path, issuer=None, audience=()), {}, 60.0)
    assert [key.kid for key in issuer.keys] == ["k1"]


def test_an_issuer_shows_no_secret() -> None:
    assert "s3cret" not in repr(open_issuer(settings(secrets=(SECRET.decode(),)), {}, 60.0))


def test_several_issuers_can_be_told_apart() -> None:
    one, other = settings(secrets=(SECRET.decode(),)), settings(secrets=(SECRET.decode(),), issuer=None)
    check_together([one])
    check_together([other])
    check_together([one, settings(secrets=(SECRET.decode(),), issuer="other")])
    for together in ([one, other], [one, one]):
        with pytest.raises(ConfigError, match="an issuer of its own"):
            check_together(together)


# Files


def test_a_stamp_is_another_one_once_a_file_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    seen = [stamp([path])]
    for number in range(3):
        path.write_text("x" * number)
        os.utime(path, (1_000, 1_000))
        seen.append(stamp([path]))
        assert stamp([path]) == seen[-1]
    (tmp_path / "new").write_text("x" * 2)
    os.utime(tmp_path / "new", (1_000, 1_000))
    (tmp_path / "new").replace(path)
    seen.append(stamp([path]))
    path.chmod(0o600)
    seen.append(stamp([path]))
    os.utime(path, (1_001, 1_001))
    seen.append(stamp([path]))
    assert len(set(seen)) == len(seen)


def test_a_file_that_has_just_changed_is_looked_at_again(tmp_path: Path) -> None:
    """Another change may leave its size, and its time too where clocks are coarse."""
    path = tmp_path / "keys"
    path.write_text("x")
    assert stamp([path]) != stamp([path])


def test_a_file_is_read_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("ключ", encoding="utf-8")
    path.chmod(0o640)
    assert read_text(path, "auth_file") == ("ключ", 0o640)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="a regular file"):
        read_text(tmp_path / "pipe", "auth_file")
