"""`gdfq-export verify`: ONNX Runtime against the integer reference and against the PyTorch program."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gdfq_export.errors import UsageError

if TYPE_CHECKING:
    from gdfq_export.compare import TorchComparison
    from gdfq_export.runtime_checks.verify import VerifyResult


SOFTMAX_TOLERANCE = 1e-5  # float32 softmax and log-softmax of two libraries on the same logits


def verify(
    model: Annotated[Path, typer.Argument(help="The quantized ONNX file.")],
    samples: Annotated[int, typer.Option(help="Images to compare on.")] = 16,
    level: Annotated[str, typer.Option(help="Optimization levels to compare: all,basic,disabled.")] = "all",
    bisect: Annotated[bool, typer.Option("--bisect", help="On a mismatch, find its first tensor and cause.")] = False,
    max_memory: Annotated[float, typer.Option(help="Refuse models that would need more memory, in GB.")] = 8.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prove that ONNX Runtime computes a file's integers exactly; exit code 1 when a check fails.

    The PyTorch program beside the file (model.fakequant.pt2) is compared too where it is present and PyTorch is
    installed; the rest of the proof needs neither.
    """
    if samples < 1:
        raise UsageError(f"--samples {samples} compares nothing: give 1 or more")
    levels = tuple(part.strip() for part in level.split(","))
    for name in levels:
        if name not in ("all", "basic", "disabled"):
            raise UsageError(f"--level {name!r} is none of all, basic, disabled")

    from gdfq_export.progress import progress_bars, silent
    from gdfq_export.runtime_checks.verify import verify_model

    with nullcontext(silent) if as_json else progress_bars() as progress:
        result = verify_model(
            model,
            samples=samples,
            levels=levels,
            max_memory=int(max_memory * 1e9),
            progress=lambda done, total: progress("comparing every tensor", done, total),
        )
    torch_result = _compare_program(model, result)
    passed = result.passed and (torch_result is None or torch_result.passed)
    report = {**result.to_json(), "passed": passed, "torch": None if torch_result is None else torch_result.to_json()}
    if bisect:
        report["bisect"] = _bisect(model, samples, int(max_memory * 1e9))
    if as_json:
        print(json.dumps(report))
    else:
        _print_report(model, report)
    if not passed:
        raise typer.Exit(1)


def _compare_program(model: Path, result: VerifyResult) -> TorchComparison | None:
    """The comparison with the companion, where both it and PyTorch are there."""
    from importlib.util import find_spec

    from gdfq_export.compare import check_companion, compare_with_torch
    from gdfq_export.files import companions_of
    from gdfq_export.runtime_checks.golden import read_provenance
    from gdfq_export.runtime_checks.loading import load_model

    companion = companions_of(model).fakequant
    if not companion.exists() or find_spec("torch") is None:
        return None
    provenance = read_provenance(load_model(model))
    if provenance.get("float_parts"):  # two libraries need not agree to the last bit on what runs in float
        return None
    check_companion(companion, provenance.get("fakequant_sha256"))
    outputs = next(iter(result.outputs.values()))
    step = float(provenance.get("output_step", 1.0))
    tolerance = SOFTMAX_TOLERANCE if provenance.get("float_ending") else 0.0
    return compare_with_torch(companion, result.inputs, outputs, step, tolerance)


def _bisect(model: Path, samples: int, max_memory: int) -> dict[str, Any] | None:
    """Where and why the first tensor differs, with the files that show it; None when nothing differs."""
    from gdfq_export.runtime_checks.bisect import bisect_model

    found = bisect_model(model, samples=samples, max_memory=max_memory)
    if found is None:
        return None
    onnx_path, arrays_path = found.write_beside(model)
    return {**found.to_json(), "model": str(onnx_path), "arrays": str(arrays_path)}


def _print_report(model: Path, report: dict[str, Any]) -> None:
    """One line for each check."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    def line(good: bool, text: str) -> None:
        console.print(f"[green]ok[/]    {text}" if good else f"[red]FAIL[/]  {text}")

    for name, level in report["levels"].items():
        text = (
            f"level {name}: {level['mismatches']} of {level['elements']:,} elements differ from the integer reference"
        )
        line(level["mismatches"] == 0 or name != "all", f"{text} ({level['tensors']} tensors)")
    torch_report = report["torch"]
    if torch_report is None:
        console.print("-     not compared with a PyTorch program: none beside the file, or parts of it stay float")
    else:
        exact = torch_report["mismatches"] == 0
        text = f"PyTorch program: {torch_report['mismatches']} of {torch_report['outputs']:,} outputs differ"
        line(exact or report["passed"], f"{text}, top-1 agreement {torch_report['top1_agreement']:.1f} %")
    floats = report["float_ops"]
    line(not floats, f"{len(floats)} operators ran in float" + (f": {', '.join(floats[:5])}" if floats else ""))
    for key, text in (
        ("saturation_safe", "no int16 saturation on x86 without VNNI"),
        ("overflow_safe", "no int32 overflow, no bias clipped"),
        ("isa_invariant", "sums and products are the same under FMA, SSE and NEON"),
    ):
        line(bool(report[key]), f"{'proved' if report[key] else 'not proved'}: {text}")
    for row in report["not_proved"][:10]:
        console.print(f"      {row['layer']}: {row['property']}: {row['detail']}")
    if report["golden"] is not None:
        line(report["golden"]["mismatches"] == 0, f"golden vectors: {report['golden']['mismatches']} outputs differ")
    if report["hashes"] is not None:
        changed = report["hashes"]["changed"]
        line(not changed, "hashes of all layers hold" if not changed else f"changed: {', '.join(changed[:10])}")
    if report.get("bisect"):
        first = report["bisect"]
        console.print(f"first difference: {first['tensor']} of {first['layer']} ({first['op']}): {first['cause']}")
        console.print(f"      {first['detail']}; reproduce it with {first['model']} and {first['arrays']}")
    runtime = report["runtime"]
    verdict = "[green]passed[/]" if report["passed"] else "[red]failed[/]"
    console.print(f"{model}: {verdict} (onnxruntime {runtime['version']}, {report['samples']} samples)")
