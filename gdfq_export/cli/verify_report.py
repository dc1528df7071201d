"""What `verify` prints: one row for each check, and the verdict, which is that none of them fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdfq_export.runtime_checks.rows import Row

STYLES = {"ok": "green", "note": "dim", "FAIL": "red"}


def print_report(model: Path, report: dict[str, Any]) -> None:
    """The object of `--json` as text."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for row in report["rows"]:
        state = row["state"]
        console.print(f"[{STYLES[state]}]{state:<4}[/]  {escape(row['text'])}")
        for detail in row["details"]:
            console.print(f"      {escape(detail)}")
    runtime = report["runtime"]
    verdict = "[green]passed[/]" if report["passed"] else "[red]failed[/]"
    console.print(f"{escape(str(model))}: {verdict} (onnxruntime {runtime['version']}, {report['samples']} samples)")


def other_row(name: str, other: dict[str, Any]) -> Row:
    """How far another runtime's outputs are; nothing is promised, so nothing fails."""
    from gdfq_export.runtime_checks.rows import NOTE, Row

    share = 100 * other["max_difference"] / other["spread"] if other["spread"] else 0.0
    text = (
        f"{name} {other['version']} ({other['settings']}): {other['mismatches']:,} of {other['elements']:,} outputs "
        f"differ, by at most {other['max_steps']:,} steps ({share:.2f} % of the outputs' spread), "
        f"top-1 agreement {other['top1_agreement']:.1f} %"
    )
    return Row(NOTE, text)


def difference_row(first: dict[str, Any]) -> Row:
    """Where `--bisect` found the first difference, which another row counts."""
    from gdfq_export.runtime_checks.rows import NOTE, Row

    text = f"first difference: {first['tensor']} of {first['layer']} ({first['op']}): {first['cause']}"
    return Row(NOTE, text, (f"{first['detail']}; reproduce it with {first['model']} and {first['arrays']}",))
