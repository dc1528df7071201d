"""How well the score that needs no data predicts accuracy: the forecast's coverage, rank correlation, and regret.

    python benchmarks/forecast.py --assets ASSETS --work WORK --bits 8x8 6x6 4x8/8 --seeds 0 --states states.jsonl
    python benchmarks/forecast.py --read states.jsonl

Climbs the ladder of `--method auto` for each network of the folder (`assets.py`), width and seed, and measures the
accuracy of every state (simulated, as the ladder sees it) on labelled images. Nothing is chosen by these images: the
ladder goes on as it would without them. Each state is a line of --states, which is added to; a climb that is there
already is not run again. WORK keeps unpacked images, and optimised ones for other widths.

Printed for all states together, of this run and of the file:
- the share whose points lost lie within the forecast's bounds, for each network, with the constants of the code;
- the same for each network with constants fitted to the other networks alone;
- Spearman's rank correlation of score and points lost, and the regret: how many points the state that the ladder keeps
  is behind the best one of its climb.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from assets import ASSETS, Asset, image_folder

from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.forecast import FLIPS, FLIPS_CROWDING, FURTHEST, POINTS, POINTS_CROWDING, forecast
from gdfq_export.image_store import ImageStore
from gdfq_export.lower import Quantized
from gdfq_export.meaning import ONE_CLASS
from gdfq_export.memory import keep_freed_memory
from gdfq_export.methods import Task
from gdfq_export.methods.auto import Ladder, climb
from gdfq_export.methods.recon import judges, make_images, seen_and_held_back
from gdfq_export.models.sources import LoadedModel
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram
from gdfq_export.progress import silent
from gdfq_export.runtime_checks.images import list_images, network_input
from gdfq_export.runtime_checks.input_spec import Preprocessing
from gdfq_export.score import LogitError, error_of
from gdfq_export.settings import Settings, distillation_for, reconstruction_for, schedule_for, tuning_for, weighing_for
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher

BATCH = 25
LEAST = 0.02  # error; what is nearer loses no more than chance takes or gives


@dataclass(frozen=True)
class State:
    """One rung of one climb."""

    network: str
    classes: int
    bits: str
    seed: int
    preset: str
    rung: str
    kept: bool  # by the ladder
    score: float  # what the ladder sees: the error on all judges
    error: float  # on the held-back images alone, as a run reports it
    held_back: int
    agreement: float  # percent, on those
    real_error: float  # on the labelled images, whose labels do not count for it
    real_agreement: float
    images: int  # labelled ones
    float_accuracy: float
    drop: float  # points of top-1

    @property
    def climb(self) -> str:
        """Which run it belongs to."""
        return f"{self.network}, {self.bits}, seed {self.seed}, {self.preset}"


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images as the network reads them, and their classes."""

    images: torch.Tensor
    classes: torch.Tensor

    def accuracy(self, logits: torch.Tensor) -> float:
        """Top-1 in percent."""
        return 100 * float((logits.argmax(1) == self.classes).double().mean())


def read_labelled(folder: Path, loaded: LoadedModel, most: int) -> Labelled:
    """Images below the folder, evenly spread where there are more than enough, as `evaluate` prepares them."""
    channels, height, width = loaded.input_size
    prepared = Preprocessing(height, width, channels, loaded.resize, loaded.mean, loaded.std, raw=False)
    found = list_images(folder, loaded.num_classes or 0)
    found = found[:: max(-(-len(found) // most), 1)]
    images = torch.from_numpy(np.stack([network_input(image.path, prepared) for image in found]))
    return Labelled(images, torch.tensor([image.label for image in found]))


@torch.no_grad()
def answers(program: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits of all images."""
    return torch.cat([program(batch) for batch in images.split(BATCH)])


def distance(found: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """The error of logits, and how many percent have the same class."""
    error = LogitError(ONE_CLASS)
    error.add(found, wanted)
    return error.value, 100 * float((found.argmax(1) == wanted.argmax(1)).double().mean())


def widths_of(text: str) -> BitWidths:
    """`4x8/8` is 4-bit weights, 8-bit activations, and 8 bits for the first and the last layer."""
    inner, _, ends = text.partition("/")
    weight, activation = map(int, inner.split("x"))
    return BitWidths(weight, activation, int(ends) if ends else None)


def climb_and_measure(
    asset: Asset, loaded: LoadedModel, bits: str, seed: int, preset: str, labelled: Labelled, store: ImageStore
) -> list[State]:
    """All states of one climb; its images are those of the other widths."""
    shape, widths = loaded.input_size, widths_of(bits)
    settings = Settings(
        *("auto", widths, schedule_for(preset, shape), "mse", "portable", seed),
        distillation=distillation_for(preset, shape),
        reconstruction=reconstruction_for(preset, shape),
        tuning=tuning_for(preset, shape, widths),
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
    exact = FloatProgram(prepared.folded)
    wanted, told = answers(exact, held_back), answers(exact, labelled.images)
    accuracy = labelled.accuracy(told)
    states = []
    for name, quantized in kept:
        program = FakeQuantProgram(quantized, learned_steps=False).eval()
        error, agreement = distance(answers(program, held_back), wanted)
        found = answers(program, labelled.images)
        real_error, real_agreement = distance(found, told)
        state = State(
            *(asset.name, told.shape[1], bits, seed, preset, name, name == ladder.kept),
            *(ladder.scores[name], error, len(held_back), agreement, real_error, real_agreement),
            *(len(found), accuracy, accuracy - labelled.accuracy(found)),
        )
        states.append(state)
        print(f"{state.climb}, {name}: error {error:.4f}, {state.drop:.2f} points lost", flush=True)
    return states


def read_states(path: Path | None) -> list[State]:
    """What earlier runs measured."""
    if path is None or not path.exists():
        return []
    return [State(**json.loads(line)) for line in path.read_text().splitlines()]


def run_all(args: argparse.Namespace, states: list[State]) -> list[State]:
    """The climbs that are not among the states yet, added to the file one by one."""
    done = {state.climb for state in states}
    args.work.mkdir(exist_ok=True)
    for bits in args.bits:
        for name in args.networks:
            asset = ASSETS[name]
            wanted = [seed for seed in args.seeds if f"{name}, {bits}, seed {seed}, {args.preset}" not in done]
            if not wanted:
                continue
            loaded = asset.load(args.assets)
            labelled = read_labelled(image_folder(asset, args.assets, args.work), loaded, args.images)
            for seed in wanted:
                store = ImageStore(args.work / f"{name}.{args.preset}.{seed}.safetensors")
                made = climb_and_measure(asset, loaded, bits, seed, args.preset, labelled, store)
                states += made
                if args.states is not None:
                    with args.states.open("a") as file:
                        file.writelines(json.dumps(dataclasses.asdict(state)) + "\n" for state in made)
    return states


def rank_correlation(states: Sequence[State]) -> float:
    """Spearman's, with mean ranks for ties."""
    ranks = [mean_ranks(np.array(values)) for values in zip(*((s.score, s.drop) for s in states), strict=True)]
    return float(np.corrcoef(*ranks)[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    below, upto = (values[:, None] > values).sum(1), (values[:, None] >= values).sum(1)
    return (below + upto + 1) / 2


def holds(state: State, points: float = POINTS, flips: float = FLIPS) -> bool:
    """Whether what a state lost lies within its bounds."""
    found = forecast(state.error, state.classes, points, flips)
    return found is not None and found.low <= state.drop <= found.high


def fitted(states: Sequence[State]) -> tuple[float, float]:
    """The two factors that these states would give, as medians of those that are neither exact nor far off."""
    crowds = [state.classes / 10 for state in states]
    pairs = [(s, c) for s, c in zip(states, crowds, strict=True) if LEAST < s.error <= FURTHEST]
    points = np.median([s.drop / s.error / c**POINTS_CROWDING for s, c in pairs])
    flips = np.median([(100 - s.real_agreement) / s.error**0.5 / c**FLIPS_CROWDING for s, c in pairs])
    return float(points), float(flips)


def report(states: Sequence[State]) -> None:
    """What all states say together."""
    told = [state for state in states if state.error <= FURTHEST]
    print("| network | states | with a forecast | within | within, with factors of the others | mean width |")
    print("|---|---|---|---|---|---|")
    for name in [*dict.fromkeys(state.network for state in states), None]:
        mine = [state for state in told if name in (None, state.network)]
        counts = f"{sum(name in (None, state.network) for state in states)} | {len(mine)} | {sum(map(holds, mine))}"
        left_out = sum(
            holds(state, *fitted([other for other in told if other.network != state.network])) for state in mine
        )
        guesses = [forecast(state.error, state.classes) for state in mine]
        width = np.mean([guess.high - guess.low for guess in guesses if guess is not None])
        print(f"| {name or '**all**'} | {counts} | {left_out} | {width:.1f} |")
    print(f"\nfactors fitted to all: points {fitted(told)[0]:.1f}, flips {fitted(told)[1]:.1f}")
    print(f"rank correlation of score and points lost: {rank_correlation(states):.3f}\n")
    print("| climb | states | rank correlation | kept | lost | forecast | regret |\n|---|---|---|---|---|---|---|")
    for title, group in groupby(states, key=lambda state: state.climb):
        climbed = list(group)
        kept = next(state for state in climbed if state.kept)
        regret = kept.drop - min(state.drop for state in climbed)
        inner = f"{rank_correlation(climbed):.2f}" if len(climbed) > 1 else "-"
        guess = forecast(kept.error, kept.classes)
        text = "none" if guess is None else guess.text
        print(f"| {title} | {len(climbed)} | {inner} | {kept.rung} | {kept.drop:.2f} | {text} | {regret:.2f} |")


def main() -> None:
    """Measures what is not measured yet, and prints what all states say together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder of networks and images, see assets.py")
    parser.add_argument("--work", type=Path, help="folder for unpacked and optimised images, kept for the next call")
    parser.add_argument("--networks", nargs="+", choices=list(ASSETS), default=list(ASSETS))
    parser.add_argument("--bits", nargs="+", default=["8x8", "6x6", "4x8/8"], help="weights x activations / ends")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=5000, help="how many labelled images judge, at most")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--states", type=Path, help="add what is measured to this file, one line a state")
    parser.add_argument("--read", type=Path, help="measure nothing: report on the states of this file")
    args = parser.parse_args()
    if args.read is None and (args.assets is None or args.work is None):
        parser.error("give --assets and --work, or --read")
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.preset}\n")
    states = read_states(args.read or args.states)
    report(states if args.read else run_all(args, states))


if __name__ == "__main__":
    main()
