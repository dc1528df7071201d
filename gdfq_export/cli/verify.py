"""`gdfq-export verify`: ONNX Runtime against the integer reference and against the PyTorch program."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gdfq_export.cli.options import max_memory_bytes
from gdfq_export.cli.verify_report import difference_row, other_row, print_report
from gdfq_export.errors import UsageError
from gdfq_export.runtime_checks.names import LEVEL_NAMES, RUNTIME_NAMES

if TYPE_CHECKING:
    from gdfq_export.compare import TorchComparison
    from gdfq_export.runtime_checks.bisect import BisectResult
    from gdfq_export.runtime_checks.rows import Row
    from gdfq_export.runtime_checks.verify import VerifyResult


def verify(
    model: Annotated[Path, typer.Argument(help="The quantized ONNX file.")],
    samples: Annotated[int, typer.Option(help="Images to compare on.")] = 16,
    level: Annotated[str, typer.Option(help=f"Optimization levels to compare: {','.join(LEVEL_NAMES)}.")] = "all",
    runtime: Annotated[
        str | None,
        typer.Option(
            help=f"Other runtimes to compare too, where nothing is promised: {','.join(RUNTIME_NAMES)}.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail a file of this tool that lacks what it should say about itself.")
    ] = False,
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
    levels = _names(level, LEVEL_NAMES, "--level")
    runtimes = () if runtime is None else _names(runtime, RUNTIME_NAMES, "--runtime")
    limit = max_memory_bytes(max_memory)

    from gdfq_export.progress import progress_bars, silent
    from gdfq_export.runtime_checks.findings import findings_of
    from gdfq_export.runtime_checks.other_runtimes import compare_runtime
    from gdfq_export.runtime_checks.rows import passes, rows_of
    from gdfq_export.runtime_checks.user_names import with_user_names
    from gdfq_export.runtime_checks.verify import verify_model

    others = {name: compare_runtime(model, name, samples, max_memory=limit).to_json() for name in runtimes}
    with nullcontext(silent) if as_json else progress_bars() as progress:
        result = verify_model(
            model,
            samples=samples,
            levels=levels,
            max_memory=limit,
            strict=strict,
            progress=lambda done, total: progress("comparing every tensor", done, total),
        )
    program, program_row = _compare_program(model, result, limit)
    first = _bisect(model, samples, limit) if bisect else None
    written = None if first is None else _written(first, model)
    rows = [*rows_of(result), program_row, *(other_row(name, other) for name, other in others.items())]
    rows += [] if written is None else [difference_row(with_user_names(written, result.names))]
    passed = passes(rows)
    report = {
        **result.to_json(),
        "passed": passed,
        "rows": [row.to_json() for row in rows],
        "torch": None if program is None else program.to_json(),
        "other_runtimes": others,
        "findings": [asdict(finding) for finding in findings_of(result, first)],
        **({"bisect": written} if bisect else {}),
    }
    report = with_user_names(report, result.names)
    if as_json:
        print(json.dumps(report))
    else:
        print_report(model, report)
    if not passed:
        raise typer.Exit(1)


def _names(text: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Comma-separated names, each once and each a known one."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name!r} is none of {', '.join(known)}")
    return names


def _compare_program(model: Path, result: VerifyResult, max_memory: int) -> tuple[TorchComparison | None, Row]:
    """The comparison with the companion, where both it and PyTorch are there; the row says why there is none."""
    from importlib.util import find_spec

    from gdfq_export.compare import check_companion, compare_with_torch
    from gdfq_export.files import companions_of
    from gdfq_export.runtime_checks.graph import graph_from_model
    from gdfq_export.runtime_checks.loading import load_model
    from gdfq_export.runtime_checks.metadata import read_provenance
    from gdfq_export.runtime_checks.output_spec import output_spec
    from gdfq_export.runtime_checks.rows import NOTE, Row

    def none(reason: str) -> tuple[None, Row]:
        return None, Row(NOTE, f"PyTorch program: not compared, {reason}")

    companion = companions_of(model).fakequant
    if not companion.exists():
        return none("there is none beside the file")
    if find_spec("torch") is None:
        return none("PyTorch is not installed")
    if result.float_parts:
        return none("two libraries need not agree to the last bit on what was left in float")
    stored = load_model(model, max_memory)
    provenance = read_provenance(stored)
    checksum = provenance.get("fakequant_sha256")
    if checksum is None:
        return none(f"the file does not say that {companion.name} belongs to it")
    check_companion(companion, checksum)
    step = float(provenance.get("output_step", 1.0))
    outputs, before_ending = result.exact_outputs, result.before_ending is not None
    threshold = output_spec(graph_from_model(stored), provenance, outputs.shape[1]).threshold
    program = compare_with_torch(companion, result.inputs, outputs, step, threshold, before_ending=before_ending)
    return program, program.row()


def _bisect(model: Path, samples: int, max_memory: int) -> BisectResult | None:
    """Where and why the first tensor differs; None when nothing differs."""
    from gdfq_export.runtime_checks.bisect import bisect_model

    return bisect_model(model, samples=samples, max_memory=max_memory)


def _written(first: BisectResult, model: Path) -> dict[str, Any]:
    """The first difference, with the files that show it."""
    onnx_path, arrays_path = first.write_beside(model)
    return {**first.to_json(), "model": str(onnx_path), "arrays": str(arrays_path)}
