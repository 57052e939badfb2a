"""Rows of texts on stdout: a table for people, lines for programs."""

import sys
from collections.abc import Iterable, Sequence

import click

from sse_app.commands import printable


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows: on a terminal a table with the names of its columns, else lines whose cells are apart by tabs."""
    shown = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in shown:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
    for row in shown:
        table.add_row(*map(Text, row))  # not as markup: a topic may hold brackets
    Console().print(table)
