"""Times one GDFQ iteration against a plain loop like the authors', in turn and in one process.

    python benchmarks/step_time.py --batch 200 --steps 10

Both loops train ResNet-20 at W4A4 with the same generator weights, noise and labels, at the settings of the authors'
code (its reading of the losses, temperature 20, beta 0.1). The plain loop is in `plain_gdfq.py`. Ours quantizes more:
the image, both operands of each sum and its result, and the pooled features. So the students' losses differ; the
generators' losses at step 1 must not, and neither must the logits of the float student.

Exits with 1 when the ratio is above 0.40 (bf16 hardware) or 0.70 (elsewhere), a loss differs by more than 1e-2 (of
itself, where it is above 1), or memory exceeds 3 GB or grows.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from plain_gdfq import PlainLoop
from torch.nn import functional as F

from gdfq_export.generator import sample
from gdfq_export.losses import run_with_statistics, statistics_loss
from gdfq_export.methods import Task
from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.supply import Generated
from gdfq_export.models.sources import load_model
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram
from gdfq_export.progress import silent
from gdfq_export.settings import Settings, schedule_for, with_reading
from gdfq_export.synthesis import Teacher, autocast

LARGEST_RATIO = {True: 0.40, False: 0.70}
LARGEST_DIFFERENCE = 1e-2
LARGEST_MEMORY = 3.0
LARGEST_GROWTH = 0.02  # GB, of the least memory in the second half of the steps over that in the first


def resident() -> float:
    """Memory of this process, in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20_cifar10")
    parser.add_argument("--weights")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each loop")
    args = parser.parse_args()

    gdfq = importlib.import_module("gdfq_export.methods.gdfq")  # the package's `gdfq` is the function
    loaded = load_model(args.model, weights=None if args.weights is None else Path(args.weights))
    schedule = with_reading(schedule_for("paper", loaded.input_size), "code")
    schedule = dataclasses.replace(schedule, batch=args.batch, calibration_images=args.batch)
    settings = Settings("gdfq", BitWidths(4, 4), schedule, "mse", "portable", seed=0)
    prepared = prepare(loaded, settings)
    task = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, settings, silent)
    teacher = Teacher(prepared.captured, "cpu")
    classes = prepared.captured.num_outputs
    supply = Generated(task, teacher)
    plain = PlainLoop(loaded.module, prepared.image, classes, bits=4)
    plain.generator.load_state_dict(supply.state.model.state_dict(), strict=False)
    training = gdfq.start_training(task, quantize_to_nearest(task, supply.calibration()), supply)

    randomness = torch.Generator().manual_seed(settings.seed)  # what our loop draws from, too
    batch = sample(args.batch, classes, randomness)
    with torch.no_grad(), autocast("cpu"):
        images = supply.state.model(batch.noise, batch.labels)
        logits, found = run_with_statistics(teacher.program, images, teacher.names)
    ours = (
        float(F.cross_entropy(logits.float(), batch.labels)),
        float(statistics_loss(found, teacher.statistics, "code")),
    )
    with torch.no_grad():
        float_gap = float((FloatProgram(prepared.folded)(images) - plain.teacher(images)).abs().max())
        student_loss = float(F.cross_entropy(training.student(images), batch.labels))
    first = plain.iterate(batch.noise, batch.labels)
    theirs = (first.generator_cross_entropy, first.statistics)
    gap = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, theirs, strict=True))
    plain.freeze_ranges()

    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    bf16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    print(f"{torch.backends.cpu.get_cpu_capability()}, bf16 hardware: {'yes' if bf16 else 'no'}, ", end="")
    print(f"{torch.get_num_threads()} threads, batch {args.batch}\n")
    print("| loss at step 1 | plain loop | ours |\n|---|---|---|")
    print(f"| generator, cross-entropy | {theirs[0]:.4f} | {ours[0]:.4f} |")
    print(f"| generator, batch-norm statistics | {theirs[1]:.4f} | {ours[1]:.4f} |")
    print(f"| student, cross-entropy (other grids) | {first.student_cross_entropy:.4f} | {student_loss:.4f} |")
    print(f"\nfloat student: logits differ by at most {float_gap:.1e}\n")

    times: dict[str, list[tuple[float, float]]] = {"plain loop": [], "ours": []}
    held = []  # memory after each step
    for step in range(args.steps + 1):
        drawn = sample(args.batch, classes, randomness)
        for name in times:
            start = time.perf_counter(), time.process_time()
            if name == "ours":
                gdfq.take_turn(training, schedule)
            else:
                plain.iterate(drawn.noise, drawn.labels)
            if step:  # the first warms up
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        held.append(resident())
    # The allocator keeps now more, now less of what is free, by 0.3 GB; what a loop never gives back raises the least.
    half = len(held) // 2
    growth = min(held[half:]) - min(held[:half])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    wall, cpu = ({name: statistics.median(t[i] for t in values) for name, values in times.items()} for i in (0, 1))
    print("| | plain loop | ours | ratio |\n|---|---|---|---|")
    for label, value in (("seconds a step", wall), ("CPU seconds a step", cpu)):
        ratio = value["ours"] / value["plain loop"]
        print(f"| {label} | {value['plain loop']:.3f} | {value['ours']:.3f} | {ratio:.2f} |")
    print(f"\npeak memory of both loops together: {peak:.2f} GB; growth of the least: {growth:.3f} GB")
    ratio = cpu["ours"] / cpu["plain loop"]  # as wall time, but not disturbed by other processes
    good = (
        ratio <= LARGEST_RATIO[bf16]
        and max(gap, float_gap) <= LARGEST_DIFFERENCE
        and peak < LARGEST_MEMORY
        and growth < LARGEST_GROWTH
    )
    print("passed" if good else "FAILED")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
