"""How well the score that needs no data predicts accuracy: correlation over many states, and regret of the choices.

    python benchmarks/forecast.py --data val --model resnet20_cifar10 --bits 3x3 4x4 5x5 --seeds 1 2

Climbs the ladder of `--method auto` at each width and seed, and measures the accuracy of every state (simulated, as the
ladder sees it) on labelled images, one folder for each class. Nothing is chosen by these images: the ladder goes on as
it would without them. Printed are Spearman's rank correlation of score and accuracy over all states and within
each climb, and the regret: how many points the state that the ladder keeps is behind the best one of its climb.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from gdfq_export.cli.options import parse_floats, parse_size
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.image_store import ImageStore
from gdfq_export.lower import Quantized
from gdfq_export.methods import Task
from gdfq_export.methods.auto import Ladder, climb
from gdfq_export.methods.recon import judges, make_images, seen_and_held_back
from gdfq_export.models.sources import LoadedModel, load_model
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram
from gdfq_export.progress import silent
from gdfq_export.runtime_checks.images import list_images, network_input
from gdfq_export.runtime_checks.input_spec import Preprocessing
from gdfq_export.score import error_of, forecast
from gdfq_export.settings import Settings, distillation_for, reconstruction_for, schedule_for, tuning_for, weighing_for
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher

BATCH = 50


@dataclass(frozen=True)
class State:
    """One rung of one climb."""

    climb: str
    rung: str
    score: float
    drop: float  # points of top-1
    chosen: bool  # by the ladder


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images as the network reads them, and their classes."""

    images: torch.Tensor
    classes: torch.Tensor

    @torch.no_grad()
    def accuracy(self, program: torch.nn.Module) -> float:
        """Top-1 in percent."""
        parts = zip(self.images.split(BATCH), self.classes.split(BATCH), strict=True)
        return 100 * sum(int((program(x).argmax(1) == y).sum()) for x, y in parts) / len(self.images)


def read_labelled(folder: Path, loaded: LoadedModel, most: int) -> Labelled:
    """Images below the folder, evenly spread where there are more than enough, as `evaluate` prepares them."""
    channels, height, width = loaded.input_size
    prepared = Preprocessing(height, width, channels, loaded.resize, loaded.mean, loaded.std, raw=False)
    found = list_images(folder, loaded.num_classes or 0)
    found = found[:: max(-(-len(found) // most), 1)]
    images = torch.from_numpy(np.stack([network_input(image.path, prepared) for image in found]))
    return Labelled(images, torch.tensor([image.label for image in found]))


def climb_and_measure(
    loaded: LoadedModel, bits: BitWidths, seed: int, preset: str, labelled: Labelled, store: ImageStore
) -> list[State]:
    """All states of one climb; its images are those of the other widths."""
    shape = loaded.input_size
    settings = Settings(
        *("auto", bits, schedule_for(preset, shape), "mse", "portable", seed),
        distillation=distillation_for(preset, shape),
        reconstruction=reconstruction_for(preset, shape),
        tuning=tuning_for(preset, shape, bits),
        weighing=weighing_for(preset, shape),
    )
    prepared = prepare(loaded, settings)
    task = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, settings, silent, store=store)
    torch.manual_seed(seed)
    teacher = Teacher(task.captured, "cpu")
    images, held_back = seen_and_held_back(task, make_images(task, teacher, Stopwatch(None)))
    judging = judges(task, held_back)
    ladder = Ladder(lambda state: error_of(state, teacher, judging))
    kept: list[tuple[str, Quantized]] = []
    add = ladder.add

    def note(name: str, state: Quantized, trusted: float = 1.0) -> float:
        kept.append((name, state))
        return add(name, state, trusted)

    ladder.add = note  # type: ignore[method-assign]
    climb(task, ladder, images, Stopwatch(None))
    exact = labelled.accuracy(FloatProgram(prepared.folded))
    title = f"W{bits.weight}A{bits.activation}, seed {seed}"
    states = []
    for name, state in kept:
        accuracy = labelled.accuracy(FakeQuantProgram(state, learned_steps=False).eval())
        states.append(State(title, name, ladder.scores[name], exact - accuracy, name == ladder.kept))
        guess = forecast(ladder.scores[name], prepared.captured.num_outputs)
        inside = "yes" if guess.low <= states[-1].drop <= guess.high else "no"
        print(
            f"| {title} | {name} | {ladder.scores[name]:.5f} | {states[-1].drop:.2f} "
            f"| {guess.drop:.2f} ({guess.low:.2f} .. {guess.high:.2f}) | {inside} |",
            flush=True,
        )
    return states


def rank_correlation(states: list[State]) -> float:
    """Spearman's, with mean ranks for ties."""
    ranks = [mean_ranks(np.array(values)) for values in zip(*((s.score, s.drop) for s in states), strict=True)]
    return float(np.corrcoef(*ranks)[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    below, upto = (values[:, None] > values).sum(1), (values[:, None] >= values).sum(1)
    return (below + upto + 1) / 2


def main() -> None:
    """Prints a row for each state and what they say together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="one folder of images for each class")
    parser.add_argument("--model", default="resnet20_cifar10")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--input-size")
    parser.add_argument("--bits", nargs="+", default=["3x3", "4x4", "5x5", "6x6", "8x8"], help="weights x activations")
    parser.add_argument("--first-last", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=2000, help="how many images judge, at most")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    loaded = load_model(
        args.model,
        weights=args.weights,
        mean=parse_floats(args.mean, "--mean") if args.mean else None,
        std=parse_floats(args.std, "--std") if args.std else None,
        input_size=parse_size(args.input_size) if args.input_size else None,
    )
    labelled = read_labelled(args.data, loaded, args.images)
    print(
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.preset}", end=", "
    )
    print(f"{len(labelled.images)} images\n")
    print("| climb | rung | score | points lost | forecast | inside |\n|---|---|---|---|---|---|")
    states: list[State] = []
    with tempfile.TemporaryDirectory() as folder:
        for bits in args.bits:
            weight, activation = map(int, bits.split("x"))
            for seed in args.seeds:
                widths = BitWidths(weight, activation, args.first_last)
                store = ImageStore(Path(folder) / f"{seed}.safetensors")
                states += climb_and_measure(loaded, widths, seed, args.preset, labelled, store)
    print(f"\n{len(states)} states: rank correlation {rank_correlation(states):.3f}\n")
    print("| climb | states | rank correlation | chosen | regret |\n|---|---|---|---|---|")
    for title, group in groupby(states, key=lambda state: state.climb):
        climbed = list(group)
        chosen = next(state for state in climbed if state.chosen)
        regret = chosen.drop - min(state.drop for state in climbed)
        inner = f"{rank_correlation(climbed):.2f}" if len(climbed) > 1 else "-"
        print(f"| {title} | {len(climbed)} | {inner} | {chosen.rung} | {regret:.2f} |")


if __name__ == "__main__":
    main()
