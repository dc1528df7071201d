"""What views of optimised images, and dead leaves, are worth on photographs: the error of the logits for each number.

    python benchmarks/views.py --photos DIR --model fdmobilenet_wd2 --weights FILE --views 2 --leaves 0 1 --weighing 0 8

DIR holds photographs, without labels and in any folders; they judge, and nothing is fitted to them. For each number of
views a row has the error (1 - r^2 of the logits, `score.py`) of the network rounded to nearest, with corrected biases,
rounded by second order and reconstructed: first on the held-back images with their views and on dead leaves, which is
what `--method auto` chooses by, then on the photographs, and how many photographs keep their class. With `--leaves`,
further rows have the second order's network tuned as a whole, with so many images of dead leaves for each optimised
one. With `--weighing`, streams are rotated (unless `--no-rotations`), channels are scaled and ranges chosen by what the
network answers on so many of the images (`methods/fitting.py`), and the states behind start there; 0 is without. The
optimised images are the same in all rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gdfq_export.bias_correction import correct_by_images
from gdfq_export.cli.options import parse_floats, parse_size
from gdfq_export.distilled import distil_images
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.lower import TARGETS, Quantized
from gdfq_export.methods import Task
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.fitting import start_fitting
from gdfq_export.methods.recon import judges, learn_as_a_whole, seen_and_held_back
from gdfq_export.models.sources import LoadedModel, load_model
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.progress import silent
from gdfq_export.reconstruct import reconstruct
from gdfq_export.runtime_checks.images import SUFFIXES, network_input
from gdfq_export.runtime_checks.input_spec import Preprocessing
from gdfq_export.score import logit_error
from gdfq_export.second_order import round_by_second_order
from gdfq_export.settings import Settings, distillation_for, reconstruction_for, schedule_for, tuning_for
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher


def photographs(folder: Path, loaded: LoadedModel) -> torch.Tensor:
    """Every photograph below the folder, as `evaluate` prepares it."""
    channels, height, width = loaded.input_size
    prepared = Preprocessing(height, width, channels, loaded.resize, loaded.mean, loaded.std, raw=False)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return torch.from_numpy(np.stack([network_input(path, prepared) for path in paths]))


def states(task: Task, images: torch.Tensor, leaves: list[float], *, rotate: bool) -> Iterator[tuple[str, Quantized]]:
    """The rungs that use images; where leaves are asked for, tuning instead of reconstruction."""
    batches = torch.split(images, task.settings.reconstruction.batch)
    fitting = start_fitting(task, images, rotate=rotate) if task.settings.weighing else None
    task = fitting.task if fitting else task
    nearest = quantize_to_nearest(task, batches)
    yield "nearest", nearest
    yield "corrected", correct_by_images(nearest, images)
    if fitting:
        nearest, exact = fitting.finish(nearest, batches)
        yield "fitted", correct_by_images(nearest, images)
        task = dataclasses.replace(task, folded=exact)
    compensated = round_by_second_order(nearest, images, TARGETS[task.settings.target])
    yield "second order", compensated
    for share in leaves:
        tuning = dataclasses.replace(task.settings.tuning, leaves=share)
        asked = dataclasses.replace(task, settings=dataclasses.replace(task.settings, tuning=tuning))
        tuned = learn_as_a_whole(asked, compensated, task.folded, images, Stopwatch(None))
        yield f"tuned, {share:g} leaves an image", tuned
    if not leaves:
        yield "reconstructed", reconstruct(nearest, images, task.settings.reconstruction, task.settings.seed, silent)


@torch.no_grad()
def classes(program: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The class of each image."""
    return torch.cat([program(batch).argmax(1) for batch in torch.split(images, 16)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--mean", type=lambda text: parse_floats(text, "--mean"))
    parser.add_argument("--std", type=lambda text: parse_floats(text, "--std"))
    parser.add_argument("--input-size", type=parse_size)
    parser.add_argument("--bits", default="8x8", help="weights x activations")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--views", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--leaves", type=float, nargs="*", default=[])
    parser.add_argument("--weighing", type=int, nargs="+", default=[0])
    parser.add_argument("--no-rotations", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    loaded = load_model(args.model, weights=args.weights, mean=args.mean, std=args.std, input_size=args.input_size)
    bits = BitWidths(*(int(width) for width in args.bits.split("x")))
    schedule = schedule_for(args.preset, loaded.input_size)
    settings = Settings(
        "auto",
        bits,
        schedule,
        "mse",
        "portable",
        args.seed,
        distillation=distillation_for(args.preset, loaded.input_size),
        reconstruction=reconstruction_for(args.preset, loaded.input_size),
        tuning=tuning_for(args.preset, loaded.input_size, bits),
    )
    prepared = prepare(loaded, settings)
    task = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, settings, silent)
    teacher = Teacher(prepared.captured, "cpu")
    photos = photographs(args.photos, loaded)
    wanted = classes(teacher.program, photos)
    made = distil_images(teacher, task.image, settings.distillation, args.seed, silent)
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.model}", end=", ")
    print(f"W{bits.weight}A{bits.activation}, {len(photos)} photographs, preset {args.preset}, seed {args.seed}\n")
    print(
        "| views | weighed on | state | error, held back | error, photographs | same class |\n|---|---|---|---|---|---|"
    )
    for views, weighing in itertools.product(args.views, args.weighing):
        distillation = dataclasses.replace(settings.distillation, views=views)
        asked = dataclasses.replace(settings, distillation=distillation, weighing=weighing)
        trial = dataclasses.replace(task, settings=asked)
        seen, held_back = seen_and_held_back(trial, made)
        judging = judges(trial, held_back)
        for name, state in states(trial, seen, args.leaves, rotate=not args.no_rotations):
            student = FakeQuantProgram(state, learned_steps=False).eval()
            errors = [f"{logit_error(student, teacher, images):.4f}" for images in (judging, photos)]
            same = 100 * float((classes(student, photos) == wanted).float().mean())
            print(f"| {views} | {weighing} | {name} | {' | '.join(errors)} | {same:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
