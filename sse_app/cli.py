"""The command line: ``sse-app serve`` and its companions."""

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from sse_app import __version__
from sse_app.config import ENV_PREFIX, Config, is_loopback
from sse_app.errors import ConfigError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sse-app")
def commands() -> None:
    """A Server-Sent Events hub. Without a command it serves."""


def _settings_as_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One flag for each setting of Config; Config alone reads what is given, and the environment."""
    defaults = {name: item.default for name, item in Config.__dataclass_fields__.items()}
    for name, setting in reversed(Config.settings().items()):
        flag = "--" + name.replace("_", "-")
        default = defaults[name]
        shown = (
            ""
            if default in (None, (), False)
            else f" Default: {default:,}."
            if isinstance(default, int) and name != "port"
            else f" Default: {default}."
        )
        text = f"{setting.help} {setting.range[:1].upper()}{setting.range[1:]}.{shown} [{ENV_PREFIX}{name.upper()}]"
        if isinstance(default, bool):
            option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
        else:
            option = click.option(flag, name, multiple=isinstance(default, tuple), metavar="VALUE", help=text)
        command = option(command)
    return command


@commands.command()
@_settings_as_options
def serve(**flags: Any) -> None:
    """Run a hub. Every setting is also an environment variable; durations take 15s, 5m, 24h, sizes 64KiB, 1MiB."""
    _raise_descriptor_limit()
    try:
        config = Config.load(flags, os.environ)
        from sse_app import server  # uvicorn and all below it: not needed to print a help text

        server.serve(config, lambda urls: _greet(config, urls))
    except ConfigError as error:
        _fail(str(error))


@commands.command()
@click.option("--url", help="Base URL of a running hub on this machine. Without it a server is started and stopped.")
@click.option("--pid", type=int, help="Its process, whose CPU time and memory to read. Only with --url.")
@click.option("--subscribers", type=int, default=1000, show_default=True, help="Open streams.")
@click.option(
    "--workload",
    type=click.Choice(["closed", "burst", "rate"]),
    default="closed",
    show_default=True,
    help="closed: one event at a time; burst: several POSTs at a time; rate: so many per second, come what may.",
)
@click.option("--duration", type=float, default=5.0, show_default=True, help="Seconds of publishing.")
@click.option("--rate", type=float, default=100.0, show_default=True, help="Events per second, for rate.")
@click.option("--inflight", type=int, default=8, show_default=True, help="POSTs at a time, for burst and rate.")
@click.option("--payload", type=int, default=100, show_default=True, help="Bytes of data in an event.")
@click.option("--publish-key", envvar=f"{ENV_PREFIX}PUBLISH_KEY", show_envvar=True, help="What publishing needs.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.argument("flags", nargs=-1, metavar="[-- FLAGS OF SERVE]")
def bench(as_json: bool, flags: tuple[str, ...], **load: Any) -> None:
    """Load a hub: deliveries per second, latency, memory per connection; lost and doubled, which must be 0."""
    from rich.console import Console
    from rich.table import Column, Table
    from uvloop import new_event_loop

    from sse_app.bench import BenchFailed, BenchRefused, Load, run

    # an exit that runs what is left to do: the server that was started is stopped
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            report = runner.run(run(Load(serve=flags, **load)))
    except (BenchRefused, BenchFailed) as error:
        _fail(str(error))
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        table = Table("", Column(justify="right"), "", show_header=False, box=None)
        for row in report.table():
            table.add_row(*row)
        Console().print(table)
    raise SystemExit(0 if report.clean else 1)


def _greet(config: Config, urls: Sequence[str]) -> None:
    url = urls[0].replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    key = ' -H "Authorization: Bearer $SSE_APP_PUBLISH_KEY"' if config.publish_key else ""
    click.echo(f"sse-app {__version__} is listening on {' and '.join(urls)}")
    click.echo(f"  the console   {url}")
    click.echo(f"  subscribe     curl -N {url}events")
    click.echo(f"  broadcast     curl -d 'hello' {url}broadcast{key}")
    if config.broker.startswith("memory:"):
        click.echo("  The log is in memory: it ends with this process. Ctrl+C stops it.")
    if not config.publish_key and not is_loopback(config.host):
        click.echo("  Anyone who reaches this address may publish (allow_open_publish).", err=True)
    sys.stdout.flush()


def _raise_descriptor_limit() -> None:
    """Every stream takes a file descriptor; the soft limit is there for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS refuses more than its own maximum
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _fail(text: str) -> None:
    click.echo(f"sse-app: {text}", err=True)
    raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Flags without a command are those of ``serve``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "serve")
    commands.main(given, prog_name="sse-app")
