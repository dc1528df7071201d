"""What `quantize` prints when its files are written: the object of `--json` as text."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any


def print_result(
    result: dict[str, Any], name: str, out: Path, companions: tuple[Path, ...], report: Path | None
) -> None:
    """Results on stdout, warnings on stderr."""
    from gdfq_export.interface import input_sentence

    smaller, kept = result["file_bytes"] / result["fp32_bytes"], result["kept"]
    made = f"{name} as {result['widths']} by {result['method']} ({kept['state']} state)"
    print(f"{out}: {made}, {result['file_bytes'] / 1e6:.2f} MB ({smaller:.2f} of float), {result['seconds']:.0f} s")
    print(f"kept: the {kept['state']} state ({kept['why']})")
    print(f"input: {input_sentence(result['input'])}")
    print(agreement_of(result))
    if result["weights_source"] == "random":
        print("weights are random (--no-pretrained): good for graph, size and latency only")
    else:
        print(forecast_of(result))
    for note in result["notes"]:
        print(f"note: {note}")
    for part in result["float_parts"]:
        print(f"stays float: {part}")
    if companions:
        fakequant, fp32 = companions
        print(f"beside it: {fakequant.name} (PyTorch), {fp32.name} (float)")
    if report is not None:
        print(f"report: {report}")
    print(f"next: gdfq-export verify {shlex.quote(str(out))}")
    for text in result["warnings"]:
        print(f"warning: {text}", file=sys.stderr)


def agreement_of(result: dict[str, Any]) -> str:
    """How often the class is the float network's, and of how many images."""
    images, percent = result["agreement_images"], result["teacher_agreement"]
    return f"agreement with the float network: {percent:.1f} % on {images} held-back generated images"


def forecast_of(result: dict[str, Any]) -> str:
    """What to expect on real images, and what that rests on."""
    error, expected = result["logit_error"], result["forecast"]
    if expected is None:
        return f"no forecast of the accuracy: the logits are too far from the float network's (error {error:.2f})"
    return (
        f"forecast: about {expected['drop']:.1f} points of top-1 lost on real images ({expected['low']:.1f} to "
        f"{expected['high']:.1f}), from the logits of {result['agreement_images']} images"
    )


def has_agreement(result: dict[str, Any], least: float | None) -> bool:
    """Whether as many classes agree as was asked for, if anything was."""
    return least is None or bool(result["teacher_agreement"] >= least)
