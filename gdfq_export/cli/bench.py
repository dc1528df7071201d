"""`gdfq-export bench`: latency percentiles, and the speedup over the float network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gdfq_export.cli.options import max_memory_bytes
from gdfq_export.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from gdfq_export.runtime_checks.bench import Comparison, Latency
    from gdfq_export.runtime_checks.profile import Profile

MAX_THREADS = 1024
FILE = "file"  # heading of the column of names
FEWEST = 8  # characters of a name, however narrow the terminal


def bench(
    model: Annotated[Path, typer.Argument(help="The ONNX file to measure.", show_default=False)],
    baseline: Annotated[
        Path | None,
        typer.Option(help="The float network to compare with; default: model.fp32.onnx beside model.onnx, if any."),
    ] = None,
    threads: Annotated[str, typer.Option(help="Numbers of threads to measure, such as 1,2.")] = "1,2",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each number of threads.")] = 5.0,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Runs of each network, instead of a time.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random input.")] = 0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Name the ten slowest kernels, and every operator that runs in float.")
    ] = False,
    max_memory: Annotated[float, typer.Option(help="Refuse models that would need more memory, in GB.")] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Measure latency at batch 1, in turns with the float network, and report percentiles and the speedup."""
    counts, limit = parse_threads(threads), max_memory_bytes(max_memory)
    from gdfq_export.runtime_checks.bench import bench as measure

    against = baseline or find_baseline(model)
    from gdfq_export.runtime_checks.profile import profile_model

    results = measure(model, against, counts, seconds, runs, seed, limit)
    kernels = profile_model(model, threads=counts[0], seed=seed, max_memory=limit) if profile else None
    if as_json:
        report = as_object(model, against, results)
        print(json.dumps(report if kernels is None else {**report, "profile": kernels.to_json()}))
    else:
        _print_table(model, against, results)
        if kernels is not None:
            _print_profile(kernels)
    for result in results:
        for warning in result.warnings:
            typer.echo(f"warning: {_threads(result)}: {warning}", err=True)
    if against is None:
        typer.echo(f"no {model.with_suffix('.fp32.onnx').name} to compare with: pass --baseline FILE", err=True)


def parse_threads(text: str) -> list[int]:
    """Positive numbers, in the order given, each once."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--threads takes numbers such as 1,2, not {text!r}") from None
    if not all(1 <= count <= MAX_THREADS for count in counts):
        raise UsageError(f"--threads takes numbers from 1 to {MAX_THREADS}, not {text!r}")
    return list(dict.fromkeys(counts))


def find_baseline(model: Path) -> Path | None:
    """The float companion that `quantize` writes beside its output."""
    companion = model.with_suffix(".fp32.onnx")
    return companion if companion.is_file() else None


def as_object(model: Path, baseline: Path | None, results: list[Comparison]) -> dict[str, object]:
    """The JSON object: times by number of threads; `speedup` is that of the first number."""
    first = results[0]
    return {
        "model": str(model),
        "baseline_file": str(baseline) if baseline else None,
        "threads": {
            str(result.threads): {
                **_rounded(result.model),
                "speedup": _round(result.speedup),
                "speedup_low": _round(result.speedup_low),
                "speedup_high": _round(result.speedup_high),
            }
            for result in results
        },
        "baseline": {str(result.threads): _rounded(result.baseline) for result in results if result.baseline} or None,
        "speedup": _round(first.speedup),
        "warnings": [f"{_threads(result)}: {warning}" for result in results for warning in result.warnings],
    }


def _rounded(latency: Latency) -> dict[str, float | int | None]:
    return {key: _round(value) for key, value in dataclasses.asdict(latency).items()}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _print_table(model: Path, baseline: Path | None, results: list[Comparison]) -> None:
    from rich.console import Console

    console = Console()
    width = console.measure(_table(["", ""], results)).maximum
    room = max(console.width - width + len(FILE), FEWEST)
    console.print(_table(shown_names([model, baseline or model], room), results))
    for result in results:
        if result.speedup is not None:
            interval = f"95 % interval {result.speedup_low:.2f} to {result.speedup_high:.2f}"
            print(f"{_threads(result)}: speedup {result.speedup:.2f} ({interval})")


def _table(names: Sequence[str], results: list[Comparison]) -> Table:
    """A row for each network and number of threads; without lines between columns, so that names have room."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("threads", FILE, title="milliseconds, batch 1", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("p50", "p90", "p99", "mean", "load", "MB", "runs"):
        table.add_column(heading, justify="right")
    for result in results:
        for name, latency in zip(names, (result.model, result.baseline), strict=True):
            if latency is not None:
                times = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.mean_ms)
                memory = "-" if latency.memory_mb is None else f"{latency.memory_mb:.0f}"
                cells = [*(f"{value:.3f}" for value in times), f"{latency.load_ms:.0f}", memory, str(latency.runs)]
                table.add_row(str(result.threads), Text(name), *cells)
    return table


def shown_names(files: Sequence[Path], width: int) -> list[str]:
    """Both names in so many characters, cut in the middle where they are longer, and never the same."""
    first, second = (file.name for file in files)
    if first == second:
        first, second = map(str, files)
    if first == second:
        second += " (baseline)"
    names = [_cut(name, width) for name in (first, second)]
    if names[0] != names[1]:
        return names
    common = next(i for i, (a, b) in enumerate(zip_longest(first, second)) if a != b)
    return [f"…{_cut(name[common:], width - 1)}" for name in (first, second)]


def _cut(name: str, width: int) -> str:
    """The beginning and, which says more, the end of a name."""
    if len(name) <= width:
        return name
    end = 2 * (width - 1) // 3
    return f"{name[: width - 1 - end]}…{name[-end:]}"


def _print_profile(profile: Profile) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = profile.to_json()["slowest"]
    table = Table("kernel", "op", title=f"the slowest {len(shown)} of {len(profile.kernels)} kernels")
    for heading in ("us", "share"):
        table.add_column(heading, justify="right")
    for kernel in shown:
        style = "yellow" if kernel["in_float"] else None
        cells = (escape(kernel["name"]), kernel["op"], f"{kernel['median_us']:.0f}", f"{100 * kernel['share']:.1f} %")
        table.add_row(*cells, style=style)
    console = Console()
    console.print(table)
    for operator in profile.float_operators:
        console.print(f"float: {operator.op} '{escape(operator.name)}': {escape(operator.reason)}", soft_wrap=True)


def _threads(result: Comparison) -> str:
    return f"{result.threads} thread{'s' * (result.threads > 1)}"
