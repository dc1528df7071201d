"""Quantizes networks at several widths and prints the accuracy of the exported files in ONNX Runtime.

    python benchmarks/accuracy.py --data DIR --model resnet20_cifar10 --bits 8x8 4x4 --seeds 0 1 2

DIR has one folder of images for each class, or holds CIFAR-10 sheets (`val_00.png`, ..., one image a row, and
`labels.json`; `--sheets val` picks them). Each row is one run of the real command line with `--json`; the accuracy is
that of `gdfq-export evaluate` on the file. Nothing is selected on these images. "Float operators" are those that
`verify` finds between the first quantization and the last. With `--keep-images DIR` optimised images are made once for
each seed, in its first row, whose seconds include them, and read from DIR by the others (`quantize --images`). With
`--static N`, the last rows are what ONNX Runtime's `quantize_static` (W8A8) makes of the float network with N real
images of DIR: it sees some of the images that it is judged by, ours sees none. The first is what this processor
computes, the second what all do that add products of bytes in 32 bits (`session.x64quantprecision`). With a budget for
mixed precision among `--options`, the width of weights in `--bits` is left out: each layer gets its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from static_baseline import images_of, quantize_statically, top1_without_saturation

from gdfq_export.cli.switches import IMAGE_METHODS

COLUMNS = (
    *("network", "method", "bits", "seed", "float", "quantized", "drop", "seconds", "GB", "file kB", "mismatches"),
    "float operators",
)


def class_folders(root: Path, prefix: str, out: Path) -> Path:
    """Sheets of 32x32 images as one folder a class."""
    labels = json.loads((root / "labels.json").read_text())
    sheets = sorted(root.glob(f"{prefix}_*.png"))
    if not sheets:
        raise SystemExit(f"no sheet {prefix}_*.png in {root}")
    for sheet in sheets:
        pixels = np.asarray(Image.open(sheet)).reshape(-1, 32, 32, 3)
        for index, (image, label) in enumerate(zip(pixels, labels[sheet.name], strict=True)):
            folder = out / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{sheet.stem}_{index:04d}.png")
    return out


def tool(*words: str) -> dict[str, Any]:
    """One command of the tool; its JSON."""
    done = subprocess.run([sys.executable, "-m", "gdfq_export", *words, "--json"], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"gdfq-export {' '.join(words)}: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def checked(model: Path) -> tuple[str, str]:
    """Elements that differ from the integer reference, and operators in float."""
    result = tool("verify", str(model))
    return str(result["levels"]["all"]["mismatches"]), str(len(result["float_ops"]))


def kept_name(model: str, method: str, seed: str) -> str:
    """The file of optimised images that all widths share."""
    return f"{model.rsplit('/', 1)[-1].replace(':', '-')}-{method}-{seed}.safetensors"


def peak_gigabytes() -> float:
    """The most memory that any command so far held."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def main() -> None:
    """Prints a row for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sheets", help="prefix of CIFAR-10 sheets in --data")
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--bits", nargs="+", default=["8x8"], help="weights x activations, like 4x4")
    parser.add_argument("--method", nargs="+", default=["gdfq"])
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--verify", action="store_true", help="verify each file too")
    parser.add_argument("--static", type=int, default=0, help="quantize_static with so many real images too")
    parser.add_argument("--keep-images", type=Path, help="folder for optimised images, which all widths share")
    parser.add_argument("--options", default="", help="further options of quantize, in one string")
    args = parser.parse_args()

    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {torch.get_num_threads()} threads"
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {versions}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    if args.keep_images:
        args.keep_images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = class_folders(args.data, args.sheets, work / "data") if args.sheets else args.data
        source = ["--model", args.model, *(["--weights", args.weights] if args.weights else []), *args.options.split()]
        mixed = "--size-budget" in source or "--bitops-budget" in source
        reference = None
        for method in args.method:
            for bits in args.bits:
                for seed in args.seeds:
                    weight, activation = bits.split("x")
                    out = work / "model.onnx"
                    widths = ["--act-bits", activation, *(["--weight-bits", weight] if not mixed else [])]
                    if args.keep_images and method in IMAGE_METHODS:
                        widths += ["--images", str(args.keep_images / kept_name(args.model, method, seed))]
                    words = [*source, *widths, "--method", method, "--seed", seed, "--out", str(out), "--force"]
                    made = tool("quantize", *words)
                    if reference is None:
                        reference = tool("evaluate", str(out.with_suffix(".fp32.onnx")), "--data", str(data))["top1"]
                    top1 = tool("evaluate", str(out), "--data", str(data))["top1"]
                    mismatches, in_float = checked(out) if args.verify else ("-", "-")
                    row = (args.model.rsplit("/", 1)[-1], method, f"W{'mixed' if mixed else weight}A{activation}", seed)
                    print(
                        f"| {' | '.join(row)} | {reference:.2f} | {top1:.2f} | {reference - top1:.2f} "
                        f"| {made['seconds']:.0f} | {peak_gigabytes():.2f} | {made['file_bytes'] / 1000:.0f} "
                        f"| {mismatches} | {in_float} |",
                        flush=True,
                    )
        if args.static:
            source = out.with_suffix(".fp32.onnx")
            static = quantize_statically(source, images_of(data, args.static, source))
            found = {
                "": tool("evaluate", str(static), "--data", str(data))["top1"],
                ", without saturation": top1_without_saturation(static, data),
            }
            for how, top1 in found.items():
                row = (args.model.rsplit("/", 1)[-1], f"quantize_static, {args.static} real images{how}", "W8A8", "-")
                accuracy = f"{reference:.2f} | {top1:.2f} | {reference - top1:.2f}"
                print(f"| {' | '.join(row)} | {accuracy} | - | - | {static.stat().st_size / 1000:.0f} | - | - |")


if __name__ == "__main__":
    main()
