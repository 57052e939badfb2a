"""Findings as text, as a table for a terminal, and as JSON types."""

from collections.abc import Sequence
from typing import Any

from sse_app.doctor.finding import Finding, Verdict

MARKS = {Verdict.OK: "✓", Verdict.WARNING: "!", Verdict.PROBLEM: "✗", Verdict.NOT_CHECKED: "-"}
COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red", Verdict.NOT_CHECKED: "dim"}


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "problems": sum(finding.verdict == Verdict.PROBLEM for finding in findings),
        "findings": [
            {
                "check": finding.check,
                "verdict": str(finding.verdict),
                "measured": finding.measured,
                "figures": dict(finding.figures),
                "advice": dict(finding.advice),
            }
            for finding in findings
        ],
    }


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings of each verdict, in a line."""
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in Verdict}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)


def lines(findings: Sequence[Finding]) -> list[str]:
    """Return plain text for pipes and logs: a line for each finding, its advice indented below it."""
    shown = []
    for finding in findings:
        shown.append(f"{finding.verdict:<11}  {finding.check:<11}  {finding.measured}")
        shown += [f"{'':13}{who}: {what}" for who, what in finding.advice.items()]
    return [*shown, "", summary(findings)]


def show(findings: Sequence[Finding]) -> None:
    """Print for a terminal."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()
    for finding in findings:
        colour = COLOURS[finding.verdict]
        table = Table.grid(Column(width=2), Column(width=12), Column(overflow="fold"), padding=(0, 1, 0, 0))
        table.add_row(Text(MARKS[finding.verdict], colour), Text(finding.check, "bold"), Text(finding.measured))
        for who, what in finding.advice.items():
            table.add_row("", Text(f"  {who}", colour), Text(what))
        console.print(table)
    console.print(Text(f"\n{summary(findings)}"))
