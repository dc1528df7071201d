"""Runs a table of the GDFQ paper at a short schedule, and prints it beside the paper's figures.

    python benchmarks/paper_tables.py table3 --data cifar10 --sheets val --steps 600 --seeds 0

Every row is one run of `--method gdfq` (Table 5: of `--method calibrate`, on the images of --calibration-data) with
the switches that make the variant, and the accuracy of its integers on the labelled images of --data, which nothing
else sees. The trained student is kept in every row, as the paper does, even where it agrees less. The paper's figures
are of ResNet-20 on CIFAR-100 after 80,000 iterations (Tables 4 and 5: CIFAR-10): compare the order of the rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gdfq_export.ablations import Ablations
from gdfq_export.cli.image_folder import ImageFolder
from gdfq_export.exact import IntegerProgram
from gdfq_export.models.sources import LoadedModel, load_model
from gdfq_export.pipeline import Prepared, prepare, quantize_model
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram
from gdfq_export.real_images import RealImages
from gdfq_export.settings import Schedule, Settings, schedule_for


@dataclass(frozen=True)
class Variant:
    """One row: its name, its switches, and what the paper measured."""

    name: str
    paper: float
    switches: dict[str, Any] = field(default_factory=dict)
    ranges: str = "mse"
    bits: int = 4


TABLES: dict[str, list[Variant]] = {
    "table2": [
        Variant("no generator loss", 30.70, {"generator_cross_entropy": False, "generator_statistics": False}),
        Variant("CE", 54.51, {"generator_statistics": False}),
        Variant("BNS", 44.40, {"generator_cross_entropy": False}),
        Variant("CE and BNS", 63.91),
    ],
    "table3": [
        Variant("CE", 55.55, {"distillation": False}),
        Variant("KD", 62.98, {"student_cross_entropy": False}),
        Variant("CE and KD", 63.91),
    ],
    "table4": [
        Variant("without fixed statistics", 89.21, {"fixed_statistics": False}),
        Variant("with fixed statistics", 90.23),
    ],
    "table5": [
        Variant(f"{name}, W{bits}A{bits}", figure, {}, ranges, bits)
        for name, ranges, figures in (
            ("MSE", "mse", (93.86, 93.10, 91.38, 81.59)),
            ("ACIQ", "aciq", (93.69, 92.22, 86.66, 61.87)),
            ("KL", "kl", (93.72, 92.32, 90.71, 80.05)),
            ("moving average", "ema", (93.92, 93.38, 92.39, 85.20)),
        )
        for bits, figure in zip((8, 6, 5, 4), figures, strict=True)
    ],
    "table6": [
        Variant("separate", 61.81, {"alternating": False}),
        Variant("alternating", 63.91),
    ],
    "table7": [
        *(
            Variant(f"stop at {threshold:.2f} %", figure, {"stop_threshold": threshold})
            for threshold, figure in ((90.0, 57.20), (95.0, 57.56), (99.0, 59.09), (99.5, 59.67))
        ),
        Variant("never stop", 63.91),
    ],
}


def sheets(root: Path, prefix: str, loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """CIFAR-10 sheets (one image a row) as normalised images with labels."""
    labels = json.loads((root / "labels.json").read_text())
    names = sorted(path.name for path in root.glob(f"{prefix}*.png"))
    if not names:
        raise SystemExit(f"no sheet {prefix}*.png in {root}")
    pixels = np.concatenate([np.asarray(Image.open(root / name)).reshape(-1, 32, 32, 3) for name in names])
    mean, std = np.asarray(loaded.mean, np.float32), np.asarray(loaded.std, np.float32)
    images = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images)), torch.tensor([y for name in names for y in labels[name]])


class Sheets:
    """Sheets as a source of real images for ranges."""

    def __init__(self, root: Path, prefix: str, loaded: LoadedModel) -> None:
        self.name = f"{root}/{prefix}"
        self.images, self.labels = sheets(root, prefix, loaded)

    def __len__(self) -> int:
        return len(self.labels)

    def for_classes(self, classes: int) -> Sheets:
        return self

    def read(self, indices: Any) -> tuple[Tensor, Tensor]:
        return self.images[list(indices)], self.labels[list(indices)]


def source(path: Path, prefix: str | None, loaded: LoadedModel) -> Sheets | ImageFolder:
    return Sheets(path, prefix, loaded) if prefix else ImageFolder(path, loaded).for_classes(loaded.num_classes or 0)


@torch.no_grad()
def top1(program: torch.nn.Module, data: Sheets | ImageFolder) -> float:
    """Accuracy in percent."""
    right = 0
    for first in range(0, len(data), 100):
        images, labels = data.read(range(first, min(first + 100, len(data))))
        right += int((program(images).argmax(1) == labels).sum())
    return 100 * right / len(data)


def run_variant(
    prepared: Prepared, variant: Variant, schedule: Schedule, seed: int, real: RealImages
) -> tuple[IntegerProgram, float]:
    """The integers of one row, and the seconds that they took."""
    parts = Ablations(**variant.switches, keep_better=False)
    settings = Settings(
        "gdfq" if real.calibration is None else "calibrate",
        BitWidths(variant.bits, variant.bits),
        dataclasses.replace(schedule, ablations=parts),
        variant.ranges,  # type: ignore[arg-type]
        "portable",
        seed,
    )
    start = time.monotonic()
    exported = quantize_model(prepare(prepared.loaded, settings), settings, real=real)
    return exported.program, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--data", type=Path, required=True, help="labelled images to measure on")
    parser.add_argument("--sheets", help="prefix of CIFAR-10 sheets in --data, like val")
    parser.add_argument("--calibration-data", type=Path, help="real images for Table 5")
    parser.add_argument("--calibration-sheets", help="prefix of CIFAR-10 sheets in --calibration-data")
    parser.add_argument("--model", default="resnet20_cifar10")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--warmup-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--steps-per-epoch", type=int, default=50, help="for the check of Table 7")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    if args.table == "table5" and args.calibration_data is None:
        parser.error("table5 finds ranges on real images: name them with --calibration-data")

    loaded = load_model(args.model, weights=args.weights)
    data = source(args.data, args.sheets, loaded)
    schedule = dataclasses.replace(
        schedule_for("standard", loaded.input_size),
        warmup_steps=args.warmup_steps,
        steps=args.steps,
        steps_per_epoch=args.steps_per_epoch,
        batch=args.batch,
    )
    real = RealImages()
    if args.table == "table5":
        real = RealImages(calibration=source(args.calibration_data, args.calibration_sheets, loaded))
    settings = Settings("gdfq", BitWidths(4, 4), schedule, "mse", "portable", 0)
    prepared = prepare(loaded, settings)
    reference = top1(FloatProgram(prepared.folded), data)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{args.model}, {len(data)} images, float {reference:.2f} %; generator {args.warmup_steps} steps, ", end="")
    print(f"then {args.steps} turns of batch {args.batch}, student's learning rate {schedule.student_lr:g}\n")
    print(f"| {args.table} | paper | seed | top-1 | drop | seconds |\n|---|---|---|---|---|---|", flush=True)
    for variant in TABLES[args.table]:
        for seed in args.seeds:
            program, seconds = run_variant(prepared, variant, schedule, seed, real)
            found = top1(program, data)
            row = f"{variant.paper:.2f} | {seed} | {found:.2f} | {reference - found:.2f} | {seconds:.0f}"
            print(f"| {variant.name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
