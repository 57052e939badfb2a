import pytest

from tests.commands.process import sse_app


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("bash", ["complete -o nosort", "_SSE_APP_COMPLETE=bash_complete"]),
        ("zsh", ["#compdef sse-app", "_SSE_APP_COMPLETE=zsh_complete"]),
        ("fish", ["complete --no-files --command sse-app", "_SSE_APP_COMPLETE=fish_complete"]),
    ],
)
def test_a_shell_gets_its_script(shell: str, words: list[str]) -> None:
    done = sse_app("completion", shell)
    assert done.returncode == 0
    for word in words:
        assert word in done.stdout


def test_an_unknown_shell_is_refused() -> None:
    assert sse_app("completion", "tcsh").returncode == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (
            "sse-app ",
            {"serve", "listen", "publish", "stats", "connections", "kick", "revoke", "ticket", "token", "keys"}
            | {"completion", "bench", "bench-log", "doctor"},
        ),
        ("sse-app ticket --to", {"--token", "--token-file", "--topic"}),
        ("sse-app revoke --k", {"--key", "--kid"}),
        ("sse-app keys ", {"add", "list", "remove"}),
        ("sse-app keys add --su", {"--subscribe"}),
        ("sse-app listen --la", {"--last", "--last-event-id"}),
    ],
)
def test_commands_and_options_are_completed(typed: str, offered: set[str]) -> None:
    """The script runs this command at each Tab."""
    words = typed.split(" ")
    done = sse_app(_SSE_APP_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered
    assert done.returncode == 0
