"""Makes quantized files with other tools, and shows what `inspect` and `verify` find in them.

    python benchmarks/foreign_files.py --out DIR [--model NAME] [--weights FILE] [--images 16]

NNCF and Brevitas are optional: pip install 'gdfq-export[foreign]', best in an environment of its own.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path

import torch
from foreign_tools import TOOLS, Source, Tool
from torch import nn

from gdfq_export.capture import capture
from gdfq_export.emit import float_onnx_from_graph
from gdfq_export.models.sources import load_model
from gdfq_export.passes import canonicalize, find_channel_shuffle, fold_batch_norm
from gdfq_export.runtime_checks.inspect import InspectResult, inspect_model
from gdfq_export.runtime_checks.sessions import runtime_version
from gdfq_export.runtime_checks.verify import VerifyResult, verify_model

SAMPLES = 8  # of `verify`


def main() -> int:
    """Makes the files that the installed tools can make, and prints a table."""
    arguments = parse_arguments()
    logging.disable(logging.WARNING)
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = make_source(arguments.model, arguments.weights, arguments.images, arguments.out)
    rows, details = [], []
    for tool in TOOLS:
        if tool.version is None:
            print(f"{tool.name}: left out, {' and '.join(tool.packages)} not installed", file=sys.stderr)
            continue
        path = arguments.out / f"{tool.name}.onnx"
        tool.make(source, path)
        found, verified = inspect_model(path), verify_model(path, samples=SAMPLES)
        rows.append(row(tool, found, verified))
        details += [f"- {tool.name}: {text}" for text in notes(found, verified)]
    print("| file | made by | kind | integer kernels | float operators | elements | mismatches | passed |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print("\n" + "\n".join(details))
    print(f"\n{arguments.model}, onnxruntime {runtime_version()}, level all, {SAMPLES} samples")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--model", default="resnet20_cifar10", help="as `gdfq-export quantize --model` takes it")
    parser.add_argument("--weights", type=Path, help="as `gdfq-export quantize --weights` takes it")
    parser.add_argument("--images", type=int, default=16, help="random images to calibrate on (16)")
    return parser.parse_args()


def make_source(name: str, weights: Path | None, count: int, folder: Path) -> Source:
    """The network in PyTorch and as a float ONNX file with folded batch norms; images are noise of unit variance."""
    loaded = load_model(name, weights=weights)
    folded = fold_batch_norm(find_channel_shuffle(canonicalize(capture(loaded.module, loaded.input_size))))
    fp32 = folder / "fp32.onnx"
    fp32.write_bytes(float_onnx_from_graph(folded).SerializeToString())
    images = torch.randn(count, *loaded.input_size, generator=torch.Generator().manual_seed(0))
    assert isinstance(loaded.module, nn.Module)  # and no exported program: the table's networks are built in Python
    return Source(loaded.module, fp32, images)


def row(tool: Tool, found: InspectResult, verified: VerifyResult) -> str:
    """One line of the table."""
    total = verified.levels["all"].total
    integers = sum(node.integer for node in found.nodes)
    passed = "yes" if verified.passed else "no"
    cells = (found.kind, integers, len(found.float_operators), f"{total.elements:,}", total.mismatches, passed)
    return f"| {tool.name} | {tool.version} | " + " | ".join(map(str, cells)) + " |"


def notes(found: InspectResult, verified: VerifyResult) -> list[str]:
    """Each reason with the number of operators that it holds for, warnings, and what `verify` could not show."""
    reasons = Counter((operator.op, operator.reason) for operator in found.float_operators)
    texts = [f"{count} {op} in float: {reason}" for (op, reason), count in reasons.items()]
    kinds = Counter(warning.split(": ", 1)[-1] for warning in found.warnings)
    texts += [f"{count} times: {text}" for text, count in kinds.items()]
    if not verified.same_kernels:
        texts.append("verify: other kernels run when all tensors are shown")
    return texts


if __name__ == "__main__":
    sys.exit(main())
