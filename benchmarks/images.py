"""What each part of the images' optimisation is worth: how near they come to the statistics, and what W4A4 then loses.

    python benchmarks/images.py --data cifar10 --sheets train_00 --images 128 --steps 60

One row for each variant of `Distillation`, all with the same seed: the statistics loss of the finished images, the
seconds that they took, and the drop of the network whose blocks are then reconstructed on them (`--method recon`), on
labelled images that nothing else sees. Choose with images that no result is reported on.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from pathlib import Path

import torch
from paper_tables import source, top1

from gdfq_export.distilled import distil_images
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.losses import run_with_statistics, statistics_loss
from gdfq_export.methods import Task
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.recon import split
from gdfq_export.models.sources import load_model
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram
from gdfq_export.progress import silent
from gdfq_export.reconstruct import reconstruct
from gdfq_export.settings import Distillation, Reconstruction, Settings, schedule_for
from gdfq_export.synthesis import Teacher

VARIANTS: dict[str, dict[str, float]] = {
    "as it is": {},
    "white noise": {"falloff": 0.0},
    "amplitude 1/f": {"falloff": 1.0},
    "amplitude 1/f^2": {"falloff": 2.0},
    "labels count 10 times as much": {"label_weight": 1.0},
    "no labels": {"label_weight": 0.0},
    "no shift": {"shift": 0},
}


@torch.no_grad()
def distance(teacher: Teacher, pixels: torch.Tensor) -> float:
    """The statistics loss of all images as one batch."""
    found = run_with_statistics(teacher.program, pixels, teacher.names)[1]
    return float(statistics_loss(found, teacher.statistics, "code"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled images to measure on")
    parser.add_argument("--sheets", help="prefix of CIFAR-10 sheets in --data, like train_00")
    parser.add_argument("--model", default="resnet20_cifar10")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--block-steps", type=int, default=100)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    loaded = load_model(args.model, weights=args.weights)
    data = source(args.data, args.sheets, loaded)
    schedule = schedule_for("fast", loaded.input_size)
    settings = Settings("recon", BitWidths(4, 4), schedule, "mse", "portable", args.seed)
    prepared = prepare(loaded, settings)
    task = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, settings, silent)
    teacher = Teacher(prepared.captured, "cpu")
    reference = top1(FloatProgram(prepared.folded), data)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"{args.model}, {len(data)} images, float {reference:.2f} %; {args.images} images, {args.steps} steps, ", end=""
    )
    print(f"then {args.block_steps} steps a block, seed {args.seed}\n")
    print("| variant | statistics loss | seconds | drop, nearest | drop, reconstructed |\n|---|---|---|---|---|")
    for name in args.variants:
        recipe = Distillation(args.images, min(args.images, 256), args.steps)
        recipe = dataclasses.replace(recipe, **VARIANTS[name])  # type: ignore[arg-type]
        start = time.monotonic()
        made = distil_images(teacher, prepared.image, recipe, args.seed, silent)
        seconds = time.monotonic() - start
        images, _ = split(made)
        nearest = quantize_to_nearest(task, list(images.split(32)))
        trained = reconstruct(nearest, images, Reconstruction(args.block_steps), args.seed, silent)
        drops = [reference - top1(FakeQuantProgram(q, learned_steps=False), data) for q in (nearest, trained)]
        row = f"{distance(teacher, made.pixels):.3f} | {seconds:.0f} | {drops[0]:.2f} | {drops[1]:.2f}"
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
