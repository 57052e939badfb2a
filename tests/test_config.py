import math
import resource
from datetime import timedelta
from typing import Any

import pytest

from sse_app.address import Proxies
from sse_app.config import ENV_PREFIX, Config, is_loopback
from sse_app.errors import ConfigError
from sse_app.limits import Rate

KEY = "s3cret-0123456789"
SECRET = "s3cret-0123456789-0123456789-0123456789"

# Every setting: its default (DESIGN §8), and a text with the value that it stands for.
SETTINGS: dict[str, tuple[Any, str, Any]] = {
    "host": (("127.0.0.1",), "::1, localhost", ("::1", "localhost")),
    "port": (8000, "0", 0),
    "broker": ("memory://", "memory://x", "memory://x"),
    "recover": (False, "no", False),
    "workers": (1, "1", 1),
    "allowed_hosts": ((), "a.example, *.b.example", ("a.example", "*.b.example")),
    "cors_origins": ((), "https://a.example,http://localhost:3000", ("https://a.example", "http://localhost:3000")),
    "cors_headers": ((), "X-Request-ID, newrelic", ("X-Request-ID", "newrelic")),
    "cors_credentials": (False, "yes", True),
    "trusted_proxies": ((), "10.0.0.0/8, unix", ("10.0.0.0/8", "unix")),
    "forwarded_header": (None, "X-Forwarded-For", "x-forwarded-for"),
    "ticket_reconnect": ("bound", "never", "never"),
    "failed_credentials": (Rate.parse("30/m"), "10/s:50", Rate.parse("10/s:50")),
    "publish_key": (None, KEY, KEY),
    "auth_file": (None, "hub.toml", "hub.toml"),
    "token_keys": (None, "https://a.example/jwks.json", "https://a.example/jwks.json"),
    "token_secret": (None, SECRET, SECRET),
    "token_issuer": (None, "https://a.example/", "https://a.example/"),
    "token_audience": (None, "hub", "hub"),
    "token_algorithms": ((), "HS256, HS384", ("HS256", "HS384")),
    "token_claims": (("sse", "scope"), "mercure", ("mercure",)),
    "token_max_age": (30 * 86_400.0, "1h", 3600.0),
    "jwks_stale": (86_400.0, "2d", 172_800.0),
    "auth_cookies": ((), "session, token", ("session", "token")),
    "auth_max_age": (86_400.0, "1h", 3600.0),
    "anonymous_subscribe": ((), "news/*, shop", ("news/*", "shop")),
    "require_topic": (False, "true", True),
    "allow_open_publish": (False, "yes", True),
    "heartbeat": (15.0, "500ms", 0.5),
    "history": (10_000, "7", 7),
    "history_age": (86_400.0, "2d", 172_800.0),
    "history_bytes": (64 * 1024**2, "1GiB", 1024**3),
    "queue": (1000, "5", 5),
    "queue_bytes": (1024**2, "2MiB", 2 * 1024**2),
    "so_sndbuf": (65_536, "32KiB", 32_768),
    "tcp_user_timeout": (18.0, "1m", 60.0),
    "body_max": (262_144, "1024", 1024),
    "batch_bytes": (4 * 1024**2, "64KiB", 65_536),
    "head_max": (16_384, "8KiB", 8192),
    "head_deadline": (10.0, "2.5", 2.5),
    "retry_min": (2.0, "1500ms", 1.5),
    "retry_max": (5.0, "1m", 60.0),
    "drain": (10.0, "0", 0.0),
    "max_subscribers": (None, "3", 3),
    "idempotency_window": (300.0, "1h", 3600.0),
    "access_log": (False, "on", True),
}
NEEDED: dict[str, dict[str, Any]] = {  # settings that another one needs beside it
    "cors_headers": {"cors_origins": ("*",)},
    "auth_cookies": {"token_secret": SECRET},
    "cors_credentials": {"cors_origins": ("https://a.example",)},
    "trusted_proxies": {"forwarded_header": "forwarded"},
    "forwarded_header": {"trusted_proxies": ("unix",)},
    **{name: {"token_secret": SECRET} for name in ("token_issuer", "token_audience", "token_algorithms")},
}
NUMBERS = [name for name, setting in Config.settings().items() if setting.low != -math.inf]
NAMES = pytest.mark.parametrize("name", SETTINGS)


def variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def refusal(flags: dict[str, Any], environment: dict[str, str] | None = None) -> str:
    """The one line of the error for a wrong value."""
    with pytest.raises(ConfigError) as caught:
        Config.load(flags, environment or {})
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 200
    assert text.endswith(".")
    return text


def test_every_setting_is_in_this_table() -> None:
    assert SETTINGS.keys() == Config.settings().keys()


@NAMES
def test_without_a_word_a_setting_has_its_default(name: str) -> None:
    default, _, _ = SETTINGS[name]
    if default is None and name == "max_subscribers":
        default = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 64)
    assert getattr(Config.load({}, {}), name) == getattr(Config(), name) == default


def test_where_files_are_not_limited_subscribers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (Config().max_subscribers or 0) > 2**40


@NAMES
def test_a_setting_has_one_name_as_keyword_flag_and_variable(name: str) -> None:
    _, text, value = SETTINGS[name]
    needed = NEEDED.get(name, {})
    assert getattr(Config(**{name: value}, **needed), name) == value
    as_text: dict[str, Any] = {name: text}
    assert getattr(Config(**as_text, **needed), name) == value
    assert getattr(Config.load({name: text, **needed}, {}), name) == value
    assert getattr(Config.load(needed, {variable(name): text}), name) == value


@NAMES
def test_a_flag_wins_over_its_variable(name: str) -> None:
    _, text, value = SETTINGS[name]
    assert getattr(Config.load({name: text, **NEEDED.get(name, {})}, {variable(name): "?"}), name) == value


def test_a_flag_that_was_not_given_leaves_the_word_to_the_variable() -> None:
    config = Config.load({"port": None, "cors_origins": ()}, {"SSE_APP_PORT": "1", "SSE_APP_CORS_ORIGINS": "*"})
    assert (config.port, config.cors_origins) == (1, ("*",))


def test_a_flag_may_be_repeated_where_a_list_is_meant() -> None:
    config = Config.load({"allowed_hosts": ("a.example", "b.example,c.example")}, {})
    assert config.allowed_hosts == ("a.example", "b.example", "c.example")


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_may_be_its_bounds_and_nothing_beyond(name: str) -> None:
    setting = Config.settings()[name]
    broker = "other://"  # a log that several workers can share
    together = ("retry_min", "retry_max") if name.startswith("retry_") else (name,)
    for bound in (setting.low, setting.high):
        right: dict[str, Any] = dict.fromkeys(together, int(bound) if bound == int(bound) else bound)
        assert getattr(Config(broker=broker, **right), name) == bound
    for beyond in (setting.low - 1, setting.high + 1, math.nan, math.inf, -math.inf):
        wrong: dict[str, Any] = {name: beyond}
        with pytest.raises(ConfigError, match=rf"^{name} is .* from .* to [\d,.]+\.$"):
            Config(broker=broker, **wrong)


@pytest.mark.parametrize("value", [True, "80.5", 80.5, None, (), b"80"])
def test_a_keyword_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^port is a whole number from 0 to 65,535\.$"):
        Config(port=value)


@pytest.mark.parametrize(
    "wrong",
    [{"allow_open_publish": 1}, {"access_log": "perhaps"}, {"host": 127}, {"host": ""}, {"host": ()}, {"host": ("",)},
     {"cors_origins": {"*": 1}}, {"allowed_hosts": (1,)}, {"allowed_hosts": [b"x"]}, {"heartbeat": b"15s"},
     {"heartbeat": timedelta(seconds=15)}, {"heartbeat": True}, {"body_max": 0.5}, {"history_bytes": 2048.5},
     {"publish_key": 1}, {"failed_credentials": 30}, {"failed_credentials": None}],
    ids=repr,
)  # fmt: skip
def test_a_keyword_is_not_guessed_at(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"^{name} "):
        Config(**wrong)


BAD = [
    ("port", "eighty"), ("port", "-1"), ("port", "65536"), ("port", "80.5"), ("port", "0x50"), ("port", ""),
    ("port", "9" * 5000), ("workers", "0"), ("workers", "2"), ("workers", "auto"),
    ("history", "0"), ("history", "-5"), ("history", "1e4"), ("queue", "none"), ("queue", "1000001"),
    ("heartbeat", "0"), ("heartbeat", "nan"), ("heartbeat", "inf"), ("heartbeat", "-15s"), ("heartbeat", "15 parsecs"),
    ("heartbeat", "15S"), ("heartbeat", "2h"), ("history_age", "1y"), ("tcp_user_timeout", "999ms"), ("drain", "61m"),
    ("head_deadline", "0"), ("retry_min", "0"), ("retry_max", "2h"),
    ("idempotency_window", "8d"), ("body_max", "64KB"), ("body_max", "0"), ("body_max", "1TiB"),
    ("body_max", "9" * 400), ("body_max", "9" * 400 + "GiB"), ("head_max", "1023"), ("so_sndbuf", "1"),
    ("batch_bytes", "0"), ("batch_bytes", "65MiB"),
    ("queue_bytes", "1.5.5MiB"), ("max_subscribers", "0"), ("allow_open_publish", "maybe"), ("access_log", ""),
    ("cors_origins", "example.com"), ("cors_origins", "https://example.com/path"), ("cors_origins", "null"),
    ("cors_origins", "https://user@example.com"), ("cors_origins", "https://["), ("cors_origins", "https://a.example/"),
    ("cors_headers", "X Request"), ("cors_headers", "X-Request-ID:"), ("cors_headers", "X-Ключ"),
    ("allowed_hosts", "https://example.com"), ("allowed_hosts", "example.com:8000"), ("allowed_hosts", "a b"),
    ("allowed_hosts", "::1"), ("allowed_hosts", "[::::]"), ("allowed_hosts", "[127.0.0.1]"),
    ("allowed_hosts", "[fe80::1%eth0]"),
    ("allowed_hosts", "*.*"), ("host", ""), ("host", ","), ("host", "0.0.0.0"), ("host", "example.com"), ("host", "::"),
    ("trusted_proxies", "10.0.0.0/8"), ("forwarded_header", "forwarded"), ("forwarded_header", "x-real-ip"),
    ("forwarded_header", ""), ("forwarded_header", "x-forwarded-for,forwarded"),
    ("failed_credentials", "30"), ("failed_credentials", ""), ("failed_credentials", "0/m"),
    ("auth_cookies", "session"), ("auth_max_age", "0"), ("anonymous_subscribe", "a/**/b"),
    ("ticket_reconnect", "always"), ("ticket_reconnect", ""),
    ("publish_key", ""), ("publish_key", "short"), ("publish_key", "x" * 257), ("publish_key", "ключ" * 8),
    ("publish_key", "a key\nwith a line break"),
    ("auth_file", ""), ("token_keys", ""), ("token_secret", ""), ("token_secret", "x" * 31), ("token_issuer", "a"),
    ("token_audience", "a"), ("token_algorithms", "HS256"), ("token_claims", ","),
    ("token_max_age", "0"), ("jwks_stale", "59s"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), BAD, ids=[f"{name}={text[:20]!a}" for name, text in BAD])
def test_a_bad_value_is_answered_with_one_line_that_names_its_setting(name: str, text: str) -> None:
    by_flag, by_variable = refusal({name: text}), refusal({}, {variable(name): text})
    given: dict[str, Any] = {name: text}
    with pytest.raises(ConfigError) as by_keyword:
        Config(**given)
    assert by_flag == by_variable == str(by_keyword.value)
    assert by_flag.startswith(name)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["١٥", "１５", "1_5", "+15", "1e1", " 15", "15 ", "15\n", "15 s"], ids=ascii)
def test_a_number_is_written_in_plain_digits(name: str, text: str) -> None:
    """``int`` or ``float`` accepts each of these."""
    by_flag, by_variable = refusal({name: text}), refusal({}, {variable(name): text})
    assert by_flag == by_variable == f"{name} is {Config.settings()[name].range}."


def test_there_are_at_least_40_bad_values_and_all_kinds_of_settings_among_them() -> None:
    assert len(BAD) >= 40
    assert {name for name, _ in BAD} >= set(NUMBERS) - {"history_bytes"}


@pytest.mark.parametrize("name", ["SSE_APP_PROT", "SSE_APP_", "SSE_APP_port", "SSE_APP_ACCESSLOG"])
def test_a_variable_that_is_no_setting_is_refused_by_its_name(name: str) -> None:
    assert refusal({}, {name: "8000"}).startswith(f"{name} is not a setting; ")


def test_other_variables_are_nobodys_business() -> None:
    environment = {"PORT": "1", "SSE_APPLE": "1", "SSE_APP_URL": "http://h/", "SSE_APP_NO_BOOTSTRAP": "1"}
    assert Config.load({}, environment) == Config()


# Settings that go together


def test_the_shortest_time_to_come_back_is_no_longer_than_the_longest() -> None:
    assert "retry_min" in refusal({"retry_min": "10"})
    assert Config(retry_min=10, retry_max=10).retry_min == 10


def test_headers_of_pages_need_pages_that_may_ask() -> None:
    assert "cors_origins" in refusal({"cors_headers": "X-Request-ID"})
    assert Config(cors_origins=("https://a.example",), cors_headers=("*",)).cors_headers == ("*",)


@pytest.mark.parametrize(
    "networks", ["10.0.0.1/8", "0.0.0.0/0", "10.0.0.0/8,::/0", "*", "proxy.example", "10.0.0.0/8 192.0.2.1", "Unix"]
)
def test_proxies_that_are_no_networks_or_everyone_are_refused(networks: str) -> None:
    text = refusal({"trusted_proxies": networks, "forwarded_header": "forwarded"})
    assert text.startswith("trusted_proxies holds networks such as ")


def test_the_proxies_are_trusted_with_their_header() -> None:
    proxies = Config(trusted_proxies=("10.0.0.0/8", "192.0.2.1", "unix"), forwarded_header="Forwarded").proxies
    assert proxies == Proxies.parse(("10.0.0.0/8", "192.0.2.1", "unix"), "forwarded")
    assert not Config().proxies


@pytest.mark.parametrize("origins", ["*", "https://a.example,*"])
def test_not_any_page_may_act_as_its_visitor(origins: str) -> None:
    assert refusal({"cors_origins": origins, "cors_credentials": True}).startswith("cors_credentials ")
    assert refusal({"cors_credentials": True}).startswith("cors_credentials ")


def test_several_workers_need_a_log_that_they_can_share() -> None:
    assert "memory://" in refusal({"workers": "2"})
    assert Config(workers=2, broker="other://").workers == 2


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "127.0.0.1.nip.example", "localhost.evil"]
)
def test_beyond_loopback_publishing_takes_a_key_or_the_word_of_the_operator(host: str) -> None:
    text = refusal({"host": host})
    assert "publish_key" in text
    assert "allow_open_publish" in text
    assert "publish_key" in refusal({"host": ("localhost", host)})
    assert Config(host=host, publish_key=KEY).host == (host,)
    assert Config(host=host, allow_open_publish=True).host == (host,)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_loopback_it_takes_none(host: str) -> None:
    assert is_loopback(host)
    assert Config(host=host).publish_key is None


def test_the_hosts_answered_to_are_loopback_the_own_address_and_those_allowed() -> None:
    loopback = ("localhost", "*.localhost", "127.0.0.1", "[::1]")
    assert Config().hosts == loopback
    assert Config(host="::1").hosts == loopback
    assert Config(host="192.0.2.1", publish_key=KEY).hosts == (*loopback, "192.0.2.1")
    assert Config(host="2001:db8::1", publish_key=KEY).hosts == (*loopback, "[2001:db8::1]")
    assert Config(host="::", publish_key=KEY).hosts == (*loopback, "[::]", "0.0.0.0")
    assert Config(host=("::1", "192.0.2.1", "a.example"), publish_key=KEY).hosts == (
        *(*loopback, "192.0.2.1", "a.example"),
    )
    assert Config(allowed_hosts=("a.example", "localhost")).hosts == (*loopback, "a.example")


@pytest.mark.parametrize("host", ["127.0.0.1,::1", " 127.0.0.1 , ::1", ("127.0.0.1", "::1")])
def test_several_hosts_are_a_list_or_one_text(host: str | tuple[str, ...]) -> None:
    assert Config(host=host).host == Config(host=host).addresses == ("127.0.0.1", "::1")


@pytest.mark.parametrize("host", ["::", "::0", "0:0:0:0:0:0:0:0"])
def test_any_address_of_ipv6_is_any_address_at_all(host: str) -> None:
    config = Config(host=(host, "a.example"), publish_key=KEY)
    assert config.host == (host, "a.example")
    assert config.addresses == (host, "0.0.0.0", "a.example")


# Secrets


def test_tokens_are_signed_with_a_secret_or_checked_with_keys() -> None:
    assert "give one" in refusal({"token_keys": "keys.pem", "token_secret": SECRET})
    assert SECRET not in refusal({"token_keys": "keys.pem", "token_secret": SECRET})


@pytest.mark.parametrize("key", ["s3cret", "s3cret" * 50, "s3cret-ключ-0123456789", "s3cret\n0123456789abc"])
def test_a_secret_stands_in_no_refusal(key: str) -> None:
    assert "s3cret" not in refusal({"publish_key": key})
    assert "s3cret" not in refusal({}, {"SSE_APP_PUBLISH_KEY": key})


@pytest.mark.parametrize(("name", "text"), BAD[:30:3])
def test_a_secret_stands_in_no_refusal_of_another_setting(name: str, text: str) -> None:
    assert KEY not in refusal({name: text, "publish_key": KEY})


def test_a_secret_stands_in_no_picture_of_the_settings() -> None:
    config = Config(publish_key=KEY, broker=f"redis://:{KEY}@localhost", token_secret=SECRET)
    assert KEY not in f"{config} {config!r}"
    assert SECRET not in f"{config} {config!r}"
    secrets = [name for name, setting in Config.settings().items() if setting.secret]
    assert secrets == ["broker", "publish_key", "token_secret"]


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(AttributeError):
        Config().port = 1  # type: ignore[misc]
