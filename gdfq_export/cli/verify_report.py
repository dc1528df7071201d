"""What `verify` prints: one line for each check."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

MOST_ROWS = 10
PROOFS = (
    ("saturation_safe", "no int16 saturation on x86 without VNNI"),
    ("overflow_safe", "no int32 overflow, no bias clipped"),
    ("isa_invariant", "sums and products are the same under FMA, SSE and NEON"),
)


def print_report(model: Path, report: dict[str, Any]) -> None:
    """The object of `--json` as text."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for name, level in report["levels"].items():
        text = (
            f"level {name}: {level['mismatches']} of {level['elements']:,} elements differ from the integer reference"
        )
        _line(console, level["mismatches"] == 0 or name != "all", f"{text} ({level['tensors']} tensors)")
    _print_programs(console, report)
    floats = report["float_ops"]
    names = f": {', '.join(floats[:5])}" if floats else ""
    _line(console, not floats, f"{len(floats)} operators ran in float{names}")
    for key, text in PROOFS:
        _line(console, bool(report[key]), f"{'proved' if report[key] else 'not proved'}: {text}")
    for row in report["not_proved"][:MOST_ROWS]:
        _plain(console, f"      {row['layer']}: {row['property']}: {row['detail']}")
    if report["golden"] is not None:
        different = report["golden"]["mismatches"]
        _line(console, different == 0, f"golden vectors: {different} outputs differ")
    if report["hashes"] is not None:
        changed = report["hashes"]["changed"]
        named = ", ".join(name or "the graph" for name in changed[:MOST_ROWS])
        _line(console, not changed, f"changed: {named}" if changed else "hashes of all layers hold")
    if report["activations"]:
        _plain(console, f"-     {_range_line(report['activations'])}")
    for name, other in report.get("other_runtimes", {}).items():
        _plain(console, f"-     {_other_line(name, other)}")
    if report.get("bisect"):
        first = report["bisect"]
        _plain(console, f"first difference: {first['tensor']} of {first['layer']} ({first['op']}): {first['cause']}")
        _plain(console, f"      {first['detail']}; reproduce it with {first['model']} and {first['arrays']}")
    runtime = report["runtime"]
    verdict = "[green]passed[/]" if report["passed"] else "[red]failed[/]"
    console.print(f"{_escaped(model)}: {verdict} (onnxruntime {runtime['version']}, {report['samples']} samples)")


def _print_programs(console: Console, report: dict[str, Any]) -> None:
    """The other two of the three ways: the PyTorch program of integers, and the float simulation of training."""
    program, simulation = report["torch"], report["simulation"]
    if program is None:
        _plain(console, "-     no PyTorch program beside the file: not compared")
    else:
        text = f"PyTorch program: {program['mismatches']} of {program['outputs']:,} outputs differ"
        good = program["mismatches"] == 0 or report["passed"]
        _line(console, good, f"{text}, top-1 agreement {program['top1_agreement']:.1f} %")
    if simulation is not None:
        _plain(
            console,
            f"-     float simulation of training, when the file was made: {100 * simulation['share']:.2f} % of "
            f"{simulation['elements']:,} elements differ from the integers, by up to {simulation['max_steps']} steps; "
            f"top-1 agreement {simulation['top1_agreement']:.1f} % ({simulation['images']} images)",
        )


def _range_line(activations: list[dict[str, Any]]) -> str:
    """The middle and the worst of what each activation used of its codes."""
    least = min(activations, key=lambda item: item["used"])
    return (
        f"activation ranges: half of the tensors use {100 * median(item['used'] for item in activations):.0f} % of "
        f"their codes or more; least {least['layer']} with {100 * least['used']:.0f} % "
        f"({least['seen'][0]} to {least['seen'][1]} of {least['possible'][0]} to {least['possible'][1]})"
    )


def _other_line(name: str, other: dict[str, Any]) -> str:
    """How far another runtime's outputs are; nothing is promised, so nothing fails."""
    share = 100 * other["max_difference"] / other["spread"] if other["spread"] else 0.0
    return (
        f"{name} {other['version']} ({other['settings']}): {other['mismatches']:,} of {other['elements']:,} outputs "
        f"differ, by at most {other['max_steps']:,} steps ({share:.2f} % of the outputs' spread), "
        f"top-1 agreement {other['top1_agreement']:.1f} %"
    )


def _line(console: Console, good: bool, text: str) -> None:
    console.print(f"[green]ok[/]    {_escaped(text)}" if good else f"[red]FAIL[/]  {_escaped(text)}")


def _plain(console: Console, text: str) -> None:
    console.print(_escaped(text))


def _escaped(text: object) -> str:
    """Names from a file are no markup."""
    from rich.markup import escape

    return escape(str(text))
