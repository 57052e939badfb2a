"""``sse-app completion``: the script with which a shell completes commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which a shell completes sse-app.

    \b
    bash: eval "$(sse-app completion bash)"        in ~/.bashrc
    zsh:  eval "$(sse-app completion zsh)"         in ~/.zshrc
    fish: sse-app completion fish > ~/.config/fish/completions/sse-app.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # click has all three shells
    click.echo(found(context.find_root().command, {}, "sse-app", "_SSE_APP_COMPLETE").source())
