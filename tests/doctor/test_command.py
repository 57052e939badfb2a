"""The command: its arguments, its output, and its exit status."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sse_app import doctor
from sse_app.cli import commands
from sse_app.doctor import CHECKS, Finding, Verdict
from sse_app.doctor.report import show
from tests.support.web import live_hub

OK = Finding("reach", Verdict.OK, "a hub answers")
WARNING = Finding("http", Verdict.WARNING, "six [streams]", {"nginx": "http2 on;"}, {"streams": 6})
PROBLEM = Finding("buffering", Verdict.PROBLEM, "clumps", {"nginx": "proxy_buffering off;", "Caddy": "nothing"})
NOT_CHECKED = Finding("cors", Verdict.NOT_CHECKED, "give an origin")


class Examined:
    """Stands in for ``examine``, and records its arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
        self.asked: dict[str, Any] = {}
        self._findings = findings
        monkeypatch.setattr(doctor, "examine", self)
        for name in ("SSE_APP_TOKEN", "SSE_APP_PUBLISH_KEY"):
            monkeypatch.delenv(name, raising=False)

    async def __call__(self, url: str, *, progress: object, **options: Any) -> list[Finding]:
        self.asked = {"url": url, **options}
        return list(self._findings)


def test_options_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    examined = Examined(monkeypatch, OK)
    monkeypatch.setenv("SSE_APP_PUBLISH_KEY", "from-the-environment")
    CliRunner().invoke(commands, ["doctor", "https://a.example"])
    assert examined.asked == {
        "url": "https://a.example",
        "token": None,
        "publish_key": "from-the-environment",
        "origin": None,
        "idle": 0,
    }
    arguments = "https://a.example --publish-key k --origin https://b.example --idle 120"
    CliRunner().invoke(commands, ["doctor", *arguments.split()])
    assert examined.asked == {
        "url": "https://a.example",
        "token": None,
        "publish_key": "k",
        "origin": "https://b.example",
        "idle": 120.0,
    }


def test_a_token_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    examined = Examined(monkeypatch, OK)
    (tmp_path / "token").write_text("from-a-file\n")
    monkeypatch.setenv("SSE_APP_PUBLISH_KEY", "from-the-environment")
    CliRunner().invoke(commands, ["doctor", "https://a.example", "--token-file", str(tmp_path / "token")])
    assert (examined.asked["token"], examined.asked["publish_key"]) == ("from-a-file", None)


@pytest.mark.parametrize(
    ("findings", "code"), [((OK, NOT_CHECKED), 0), ((OK, WARNING), 0), ((OK, WARNING, PROBLEM, NOT_CHECKED), 1)]
)
def test_problems_make_its_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, findings: tuple[Finding, ...], code: int
) -> None:
    Examined(monkeypatch, *findings)
    assert CliRunner().invoke(commands, ["doctor", "http://a"]).exit_code == code
    assert CliRunner().invoke(commands, ["doctor", "http://a", "--json"]).exit_code == code


def test_a_pipe_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    Examined(monkeypatch, OK, WARNING, PROBLEM, NOT_CHECKED)
    assert CliRunner().invoke(commands, ["doctor", "http://a"]).stdout.splitlines() == [
        "ok           reach        a hub answers",
        "warning      http         six [streams]",
        "             nginx: http2 on;",
        "problem      buffering    clumps",
        "             nginx: proxy_buffering off;",
        "             Caddy: nothing",
        "not checked  cors         give an origin",
        "",
        "1 ok, 1 warning, 1 problem, 1 not checked",
    ]


def test_a_terminal_gets_marks(capsys: pytest.CaptureFixture[str]) -> None:
    show([OK, WARNING, PROBLEM, NOT_CHECKED])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        ["✓", "reach", "a", "hub", "answers"],
        ["!", "http", "six", "[streams]"],
        ["nginx", "http2", "on;"],
        ["✗", "buffering", "clumps"],
    ]


def test_json_has_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    Examined(monkeypatch, WARNING)
    document = json.loads(CliRunner().invoke(commands, ["doctor", "http://a", "--json"]).stdout)
    finding = {"check": "http", "verdict": "warning", "measured": "six [streams]"}
    assert document == {
        "problems": 0,
        "findings": [{**finding, "figures": {"streams": 6}, "advice": {"nginx": "http2 on;"}}],
    }


def test_a_real_hub_is_examined() -> None:
    with live_hub() as hub:
        done = CliRunner().invoke(commands, ["doctor", hub.url, "--json"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert [finding["check"] for finding in json.loads(done.stdout)["findings"]] == list(CHECKS)


@pytest.mark.parametrize("arguments", [["localhost:8000"], ["http://a", "--origin", "b"], ["http://a", "--idle", "-1"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = CliRunner().invoke(commands, ["doctor", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")


def test_no_answer_is_4() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        done = CliRunner().invoke(commands, ["doctor", f"http://127.0.0.1:{taken.getsockname()[1]}"])
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr.startswith("sse-app: http://127.0.0.1:")
    assert done.stderr.count("\n") == 1
