"""The command: the runs that it starts, its output, and its exit status."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from sse_app import bench
from sse_app.bench import Load, Report, document
from sse_app.cli import commands
from tests.bench.test_report import OTHER, REPORT


class Compared:
    """Stands in for ``compare``, and records its arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *reports: Report) -> None:
        self.asked: tuple[Any, ...] = ()
        self._reports = reports
        monkeypatch.setattr(bench, "compare", self)
        for name in ("SSE_APP_TOKEN", "SSE_APP_PUBLISH_KEY"):
            monkeypatch.delenv(name, raising=False)

    async def __call__(
        self, loads: Sequence[Load], servers: Sequence[str], repeat: int, flags: Sequence[str], tell: object
    ) -> Sequence[Report]:
        self.asked = (loads, servers, repeat, flags)
        return self._reports


def test_one_load_to_a_server_of_our_own_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = Compared(monkeypatch, REPORT)
    assert CliRunner().invoke(commands, ["bench"]).exit_code == 0
    assert compared.asked == ([Load()], ("sse-app",), 1, ())


def test_a_token_is_part_of_a_load_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = Compared(monkeypatch, REPORT)
    monkeypatch.setenv("SSE_APP_TOKEN", "s3cret")
    assert CliRunner().invoke(commands, ["bench"]).exit_code == 0
    (load,) = compared.asked[0]
    assert load == Load(token="s3cret")
    assert "s3cret" not in repr(load)


def test_options_name_loads_servers_and_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = Compared(monkeypatch, REPORT)
    arguments = (
        "--workload connect,slow --repeat 3 --subscribers 20 --slow .5"
        " --against naive --against naive --against http://127.0.0.1:1"
    )
    assert CliRunner().invoke(commands, ["bench", *arguments.split(), "--", "--drain", "1s"]).exit_code == 0
    loads = [Load("connect", subscribers=20, slow=0.5), Load("slow", subscribers=20, slow=0.5)]
    assert compared.asked == (loads, ("sse-app", "naive", "http://127.0.0.1:1"), 3, ("--drain", "1s"))


def test_publishing_is_a_load_and_a_table_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [(1, 1), (64, 1), (8, 10), (8, 100)]
    titles = [Load("publish", inflight=n, batch=m).title for n, m in kinds]
    compared = Compared(monkeypatch, *(replace(REPORT, workload="publish", title=title) for title in titles))
    shown = CliRunner().invoke(commands, ["bench", "--workload", "publish", "--duration", "2"]).stdout
    assert compared.asked[0] == [Load("publish", subscribers=1, inflight=n, batch=m, duration=2) for n, m in kinds]
    assert re.findall("^publish.*", shown, re.MULTILINE) == titles
    assert CliRunner().invoke(commands, ["bench", "--workload", "publish,burst", "--inflight", "4"]).exit_code == 0
    assert compared.asked[0] == [Load("publish", subscribers=1, inflight=4), Load("burst", inflight=4)]
    assert CliRunner().invoke(commands, ["bench", "--workload", "publish", "--batch", "7"]).exit_code == 0
    assert compared.asked[0] == [Load("publish", subscribers=1, batch=7)]


@pytest.mark.parametrize(("report", "code"), [(REPORT, 0), (replace(REPORT, lost=3), 1)])
def test_it_prints_the_figures_and_fails_when_something_was_lost(
    monkeypatch: pytest.MonkeyPatch, report: Report, code: int
) -> None:
    Compared(monkeypatch, report, OTHER)
    plain = CliRunner().invoke(commands, ["bench"])
    structured = CliRunner().invoke(commands, ["bench", "--json"])
    assert (plain.exit_code, structured.exit_code) == (code, code)
    assert re.search(r"latency, median, ms +1\.50 +6\.00 +0\.25", plain.stdout)
    assert json.loads(structured.stdout) == document([report, OTHER])


def test_what_our_own_server_lost_over_another_log_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    Compared(monkeypatch, REPORT, replace(REPORT, server="sqlite", lost=1))
    assert CliRunner().invoke(commands, ["bench", "--against", "sqlite"]).exit_code == 1


def test_what_another_server_lost_is_told_but_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    Compared(monkeypatch, REPORT, replace(OTHER, lost=1, first_error="the server ended a stream"))
    result = CliRunner().invoke(commands, ["bench"])
    assert result.exit_code == 0
    assert "naive: the server ended a stream" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--url", "http://192.0.2.1:8000"], r"192\.0\.2\.1 is .*not this machine.*"),
        (["--workload", "closed,storm"], "workload must be one of .*"),
        (["--url", "http://127.0.0.1:1", "--", "--drain", "1s"], "flags of serve .*"),
        (["--against", "ngnix"], "ngnix: servers are .*"),
        (["--subscribers", "0"], "subscribers: out of range"),
    ],
)
def test_it_says_in_one_line_why_it_will_not_run(arguments: list[str], why: str) -> None:
    result = CliRunner().invoke(commands, ["bench", "--json", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(f"sse-app: {why}\n", result.stderr)
