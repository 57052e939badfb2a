"""The command line: ``sse-app serve``, and the other commands."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, cast

import click

from sse_app import __version__, descriptors
from sse_app.commands import (
    Exit,
    Number,
    Whole,
    discard_output,
    exits,
    open_closed_streams,
    output_written,
)
from sse_app.commands.bench_log import bench_log
from sse_app.commands.completion import completion
from sse_app.commands.connections import connections, kick
from sse_app.commands.credentials import Token, credential_options, token_text
from sse_app.commands.keys import keys
from sse_app.commands.listen import listen
from sse_app.commands.publish import publish
from sse_app.commands.revoke import revoke
from sse_app.commands.stats import stats
from sse_app.commands.ticket import ticket
from sse_app.commands.token import token
from sse_app.config import ENV_PREFIX, Config
from sse_app.errors import BenchRefused, ConfigError

if TYPE_CHECKING:
    from sse_app.bench import Report
    from sse_app.bench.load import Workload

ON_WINDOWS = "serve runs on Linux and macOS; on Windows use WSL (wsl --install), a hub in an app of your own runs here."


Flag: TypeAlias = str | bool | tuple[str, ...] | None  # as click gives it: a text, a switch, texts, or not given


class _LoadOptions(TypedDict):
    """The flags that are fields of ``bench.Load``."""

    duration: float
    rate: float
    behind: int
    payload: int | None
    slow: float
    publish_key: str | None


class Commands(click.Group):
    """Write all output before a command ends, else end with a status that says so. For a reader that has closed its
    pipe click alone would end with 1.
    """

    def invoke(self, ctx: click.Context) -> Any:
        with output_written():
            return super().invoke(ctx)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sse-app")
def commands() -> None:
    """A Server-Sent Events hub. Without a command it serves."""


for command in (listen, publish, stats, connections, kick, revoke, ticket, token, keys, completion, bench_log):
    commands.add_command(command)


def _settings_as_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a flag for each setting of Config, which alone reads their values and the environment."""
    defaults = {name: item.default for name, item in Config.__dataclass_fields__.items()}
    for name, setting in reversed(Config.settings().items()):
        flag = "--" + name.replace("_", "-")
        default = defaults[name]
        shown = f"{default:,}" if isinstance(default, int) and name != "port" else f"{default}"
        if isinstance(default, tuple):
            shown = ", ".join(default)
        shown = "" if default in (None, (), False) else f" Default: {shown}."
        text = f"{setting.meaning} {setting.range[:1].upper()}{setting.range[1:]}.{shown} [{ENV_PREFIX}{name.upper()}]"
        if isinstance(default, bool):
            option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
        else:
            option = click.option(flag, name, multiple=isinstance(default, tuple), metavar="VALUE", help=text)
        command = option(command)
    return command


@commands.command()
@_settings_as_options
def serve(**flags: Flag) -> None:
    """Run a hub. Every setting is also an environment variable; durations take 15s, 5m, 24h, sizes 64KiB, 1MiB."""
    with exits():
        if sys.platform == "win32":
            raise ConfigError(ON_WINDOWS)
        descriptors.raise_limit()
        config = Config.load(flags, os.environ)
        from sse_app.server import workers  # imports uvicorn, which a help text does not need

        workers.serve(config, lambda urls: _announce(config, urls))


@commands.command()
@click.option("--url", help="Base URL of a running hub on this machine. Without it one is started for each run.")
@click.option(
    "--against",
    multiple=True,
    metavar="[sqlite|redis|nats|naive|nchan|URL]",
    help="Measure this one beside it; a log is our own server over an empty one. Repeatable.",
)
@click.option(
    "--workload",
    default="closed",
    show_default=True,
    metavar="NAME,...",
    help="connect: all at once; closed: one event at a time; burst: several POSTs at a time; rate: so many per second,"
    " come what may; slow: as rate, with some that have stopped reading; publish: as fast as POSTs are answered;"
    " resume: all come back at once, and have missed events.",
)
@click.option("--repeat", type=Whole(1), default=1, show_default=True, help="Repetitions; medians are shown.")
@click.option("--subscribers", type=Whole(), help="Open streams. Default: 1,000, for publish 1.")
@click.option("--duration", type=Number(), default=5.0, show_default=True, help="Seconds of publishing.")
@click.option("--rate", type=Number(), default=50.0, show_default=True, help="Events per second, for rate and slow.")
@click.option(
    "--inflight",
    type=Whole(),
    help="POSTs at a time, for burst, rate, slow and publish. Default: 8; publish runs with 1 and with 64.",
)
@click.option(
    "--batch", type=Whole(), help="Events in a POST, for publish. Default: 1; publish also runs with 10 and with 100."
)
@click.option("--behind", type=Whole(), default=100, show_default=True, help="Events that each has missed, for resume.")
@click.option("--payload", type=Whole(), help="Bytes of data in an event. Default: 100, for slow 2,000.")
@click.option("--slow", type=Number(), default=0.1, show_default=True, help="Share that does not read, for slow.")
@credential_options(publish_key=True)
@click.option("--json", "as_json", is_flag=True, help="Print all runs, the medians and the ratios as JSON.")
@click.argument("flags", nargs=-1, metavar="[-- FLAGS OF SERVE]")
def bench(
    url: str | None,
    against: tuple[str, ...],
    workload: str,
    repeat: int,
    subscribers: int | None,
    inflight: int | None,
    batch: int | None,
    as_json: bool,
    flags: tuple[str, ...],
    token: Token,
    **load: Unpack[_LoadOptions],
) -> None:
    """Load a hub: publishing, delivering, connecting, resuming; and count lost and doubled, which must be 0."""
    from rich.console import Console
    from uvloop import new_event_loop

    from sse_app.bench import Load, cases, compare, document
    from sse_app.bench.logs import LOGS

    descriptors.raise_limit()
    servers = tuple(dict.fromkeys((url or "sse-app", *against)))
    with exits():
        if url and flags:
            raise BenchRefused("flags of serve go without a URL.")
        names = workload.split(",")  # Load checks them
        named = [Load(cast("Workload", name), token=token_text(token), **load) for name in names]
        given = {"subscribers": subscribers, "inflight": inflight, "batch": batch}
        loads = [case for each in named for case in cases(each, **given)]
    # SIGTERM raises SystemExit, so that the server that was started is stopped.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with (
            exits(),
            Console(stderr=True).status("") as status,
            asyncio.Runner(loop_factory=new_event_loop) as runner,
        ):
            reports = runner.run(compare(loads, servers, repeat, flags, status.update))
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        click.echo(json.dumps(document(reports)))
    else:
        _print_tables(reports)
    clean = all(report.clean for report in reports if report.server in (servers[0], *LOGS))
    raise SystemExit(Exit.DONE if clean else Exit.FLAWED)


def _print_tables(reports: "Sequence[Report]") -> None:
    """Print a table for each load, and the first error in it."""
    from rich.console import Console
    from rich.table import Column, Table

    from sse_app.bench import table

    console = Console()
    for title in dict.fromkeys(report.title for report in reports):
        runs = [report for report in reports if report.title == title]
        head, *rows = table(runs)
        # Names may fold, figures may not.
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        columns = [Column(name, justify="right", min_width=width) for name, width in zip(head, widths, strict=True)][1:]
        shown = Table(Column(no_wrap=True), *columns, box=None)
        for row in rows:
            shown.add_row(*row)
        console.print(title, style="italic", highlight=False)
        console.print(shown)
        for server, error in dict.fromkeys((report.server, report.first_error) for report in runs):
            if error:
                console.print(f"  {server}: {error}", markup=False, highlight=False)
        console.print()


@commands.command()
@credential_options(publish_key=True)
@click.option("--origin", help="Of a page that is to read the stream: https://app.example")
@click.option("--idle", type=Number(0, 3600), default=0, help="Watch a silent stream for so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.argument("url")
def doctor(url: str, token: Token, publish_key: str | None, origin: str | None, idle: float, as_json: bool) -> None:
    """Examine the way to a hub through its public URL: what proxies do to streams, and the settings to change.

    Ends with 0 when there is no problem, 1 when there are some, 2 for wrong usage, 4 when nothing answers.
    """
    from rich.console import Console

    from sse_app.doctor import examine, report

    with exits(), Console(stderr=True).status("") as status:
        asked = {"token": token_text(token), "publish_key": publish_key, "origin": origin}
        findings = asyncio.run(examine(url, **asked, idle=idle, progress=status.update))
    document = report.document(findings)
    if as_json:
        click.echo(json.dumps(document))
    elif sys.stdout.isatty():
        report.show(findings)
    else:
        click.echo("\n".join(report.lines(findings)))
    raise SystemExit(Exit.FLAWED if document["problems"] else Exit.DONE)


def _announce(config: Config, urls: Sequence[str]) -> None:
    """Print where the server listens. It serves also when that cannot be written."""
    try:
        _print_addresses(config, urls)
        sys.stdout.flush()
    except OSError:
        discard_output()
    if not (config.publish_key or config.takes_credentials or config.loopback_only):
        with suppress(OSError):
            click.echo("  Anyone who reaches this address may publish (allow_open_publish).", err=True)


def _print_addresses(config: Config, urls: Sequence[str]) -> None:
    url = urls[0].replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    variable = "SSE_APP_TOKEN" if config.takes_credentials else "SSE_APP_PUBLISH_KEY"
    header = f' -H "Authorization: Bearer ${variable}"'
    token = header if config.takes_credentials else ""
    key = token or (header if config.publish_key else "")
    click.echo(f"sse-app {__version__} is listening on {' and '.join(urls)}")
    click.echo(f"  the console   {url}")
    click.echo(f"  subscribe     curl -N {url}events{token}")
    click.echo(f"  broadcast     curl -d 'hello' {url}broadcast{key}")
    if config.broker.startswith("memory:"):
        click.echo("  The log is in memory: it ends with this process. Ctrl+C stops it.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Flags without a command are those of ``serve``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "serve")
    open_closed_streams()
    with output_written():  # also that of --help, which no command prints
        commands.main(given, prog_name="sse-app")
