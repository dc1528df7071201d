"""Block-by-block reconstruction: each block of the integer network learns to return what the float block returns.

    min over v, t, u, b    |Q(x~) - F(x)|^2 + lambda * sum(1 - |2 h(v) - 1|^beta)

    w_hat = s e^t (clamp(floor(w / s) + h(v), -qmax, qmax)),    h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1)

v decides whether each weight is rounded down or up (Nagel et al. 2020, AdaRound), t moves the layer's scales, u those
of the activations (Esser et al. 2020), b the biases. x~ mixes the float input and that of the quantized blocks before,
and inside the block each activation is rounded with probability `keep` only (Wei et al. 2022, QDrop), so that no
weight relies on one pattern of rounding errors. beta falls from 20 to 2 and drives h to 0 or 1.

Blocks come from the graph (`blocks.py`), in order; what a block reads is computed once and kept in half precision, for
as long as a later block needs it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gdfq_export.block_program import BlockProgram, Dropping
from gdfq_export.blocks import Block, find_blocks
from gdfq_export.checkpoint import Checkpoint
from gdfq_export.errors import DivergedError
from gdfq_export.graph import INPUT, Graph
from gdfq_export.lower import Quantized
from gdfq_export.ops import KERNELS
from gdfq_export.progress import Progress
from gdfq_export.quantizers import Affine
from gdfq_export.settings import Reconstruction
from gdfq_export.steps import half_cosine, randomness_of
from gdfq_export.stopwatch import Stopwatch

STAGE = "reconstructing blocks"
BLOCKS_STAGE = "blocks"
SHORTEST = 1e-9  # seconds: a clock may stand still
TIMED = 5  # steps after which a block knows how long they take
FIRST_BETA, LAST_BETA = 20.0, 2.0
TINY = 1e-30


def reconstruct(
    quantized: Quantized,
    images: Tensor,
    schedule: Reconstruction,
    seed: int,
    progress: Progress,
    stopwatch: Stopwatch | None = None,
    checkpoint: Checkpoint | None = None,
    share: float = 1.0,
) -> Quantized:
    """Reconstructs every block in turn; what is left of a share of the budget is divided evenly among the blocks."""
    stopwatch, checkpoint = stopwatch or Stopwatch(None), checkpoint or Checkpoint()
    graph = quantized.graph
    blocks = find_blocks(graph, quantized.plan)
    images = images.contiguous(memory_format=torch.channels_last)
    exact: dict[str, Tensor | Kept] = {INPUT: images}
    rounded: dict[str, Tensor | Kept] = {INPUT: images}
    saved = checkpoint.load(BLOCKS_STAGE)
    finished = 0
    if saved is not None:
        quantized, finished = quantized_from_saved(quantized, saved), saved["finished"]
    for index, block in enumerate(blocks):
        program = BlockProgram(block, quantized)
        targets = keep(run_float(graph, block, exact, schedule.batch))
        seconds = stopwatch.left(share) / (len(blocks) - index)
        if program.slots and index >= finished and seconds > 0:
            data = _Data(exact, rounded, targets)
            randomness = randomness_of(seed, index)
            for done in train_block(program, data, schedule, randomness, seconds, stopwatch.clock):
                progress(STAGE, index + done, len(blocks))
            quantized = program.learned(quantized)
            program = BlockProgram(block, quantized)
            if checkpoint.is_due() or index == len(blocks) - 1:
                state = quantized_to_save(quantized)
                checkpoint.save(BLOCKS_STAGE, {**state, "finished": index + 1})
        outputs = keep(run_block(program, rounded, schedule.batch))
        later = {name for following in blocks[index + 1 :] for name in following.inputs}
        exact = {name: value for name, value in {**exact, **targets}.items() if name in later}
        rounded = {name: value for name, value in {**rounded, **outputs}.items() if name in later}
        progress(STAGE, index + 1, len(blocks))
    return quantized


def keep(values: Mapping[str, Tensor]) -> dict[str, Kept]:
    """Tensors for all images, in half the memory."""
    return {name: Kept(value) for name, value in values.items()}


def quantized_to_save(quantized: Quantized) -> dict[str, Any]:
    """What reconstruction changes, as plain values and tensors."""
    return {
        "parameters": dict(quantized.graph.parameters),
        "affines": {group: [affine.scale, affine.zero_point] for group, affine in quantized.affines.items()},
        "weight_scales": dict(quantized.weight_scales),
    }


def quantized_from_saved(start: Quantized, saved: Mapping[str, Any]) -> Quantized:
    """`start` with what was saved."""
    affines = {group: Affine(scale, zero_point) for group, (scale, zero_point) in saved["affines"].items()}
    graph = Graph(start.graph.nodes, saved["parameters"], start.graph.output)
    return dataclasses.replace(start, graph=graph, affines=affines, weight_scales=saved["weight_scales"])


class Kept:
    """A tensor for all images in 16 bits, scaled so that neither large nor small values are lost."""

    def __init__(self, value: Tensor) -> None:
        self.factor = max(float(value.abs().max()), TINY)
        self.halves = (value / self.factor).half()

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        return self.halves[chosen].float().mul_(self.factor)

    def __len__(self) -> int:
        return len(self.halves)


Stored = Mapping[str, Tensor | Kept]


@dataclasses.dataclass(frozen=True, eq=False)
class _Data:
    """What a block reads and should return, for all images."""

    exact: Stored
    rounded: Stored
    targets: Stored


def train_block(
    program: BlockProgram,
    data: _Data,
    schedule: Reconstruction,
    randomness: torch.Generator,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[float]:
    """Trains one block; yields the share that is done after each step. Few seconds mean fewer steps."""
    start, steps, step = clock(), schedule.steps, 0
    dropping = Dropping(schedule.keep, randomness)
    roundings = program.roundings()
    groups = [
        {"params": [r.v for r in roundings], "lr": schedule.rounding_lr},
        *({"params": [r.t], "lr": schedule.scale_lr / r.qmax} for r in roundings),
        *({"params": [u], "lr": schedule.scale_lr / program.half_range(group)} for group, u in program.own_steps()),
        {"params": list(program.biases.values()), "lr": schedule.bias_lr},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    rates = [group["lr"] for group in optimizer.param_groups]
    count = len(next(iter(data.targets.values())))
    noise = rounding_noise(program, data, schedule.batch)
    while step < steps:
        if 0 < step <= TIMED and clock() - start > seconds:
            steps = step
        elif step == TIMED and seconds < math.inf:
            steps = min(steps, max(int(seconds / max(clock() - start, SHORTEST) * TIMED), TIMED))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * half_cosine(step / steps)
        chosen = torch.randint(0, count, (schedule.batch,), generator=randomness)
        inputs = {
            name: dropping.mix(data.rounded[name][chosen], data.exact[name][chosen]) for name in program.block.inputs
        }
        if program.block.nodes[0].op == INPUT:
            inputs[INPUT] = data.exact[INPUT][chosen]
        found = program(inputs, dropping=dropping)
        loss = distance(found, {name: data.targets[name][chosen] for name in found}) / noise
        progressed = (step / steps - schedule.warmup) / (1 - schedule.warmup)
        if progressed >= 0:
            beta = LAST_BETA + (FIRST_BETA - LAST_BETA) * half_cosine(progressed)
            loss = loss + schedule.decide * program.undecided(beta)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the reconstruction of the block that ends in {program.block.outputs[-1]} became {value} at step "
                f"{step + 1}: more images or a lower learning rate would help"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        yield step / steps


def distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Squared distance of a block's outputs, by position."""
    return torch.stack([(value - wanted[name]).square().sum(1).mean() for name, value in found.items()]).sum()


@torch.no_grad()
def rounding_noise(program: BlockProgram, data: _Data, batch: int) -> float:
    """The distance at the start, with everything rounded to nearest: what losses are measured in.

    It makes the balance of the terms, and so the schedule, the same for every width and every network.
    """
    first = slice(0, batch)
    found = program({name: data.exact[name][first] for name in _read(program.block)}, hard=True)
    return max(float(distance(found, {name: data.targets[name][first] for name in found})), TINY)


@torch.no_grad()
def run_float(graph: Graph, block: Block, inputs: Stored, batch: int) -> dict[str, Tensor]:
    """The block's outputs in float, for all images."""
    held = {node.name: {role: graph.parameters[key] for role, key in node.parameters.items()} for node in block.nodes}

    def run(values: dict[str, Tensor]) -> dict[str, Tensor]:
        for node in block.nodes:
            if node.op != INPUT:
                values[node.name] = KERNELS[node.op](node, [values[name] for name in node.inputs], held[node.name])
        return {name: values[name] for name in block.outputs}

    return _in_batches(run, block, inputs, batch)


@torch.no_grad()
def run_block(program: BlockProgram, inputs: Stored, batch: int) -> dict[str, Tensor]:
    """The block's outputs as the file will compute them, for all images."""
    return _in_batches(lambda values: program(values, hard=True), program.block, inputs, batch)


def _read(block: Block) -> list[str]:
    """What a block reads: the image, where it begins with it."""
    return [INPUT] if block.nodes[0].op == INPUT else list(block.inputs)


def _in_batches(
    run: Callable[[dict[str, Tensor]], dict[str, Tensor]], block: Block, inputs: Stored, batch: int
) -> dict[str, Tensor]:
    needed = _read(block)
    parts: dict[str, list[Tensor]] = {name: [] for name in block.outputs}
    for start in range(0, len(inputs[needed[0]]), batch):
        for name, value in run({name: inputs[name][start : start + batch] for name in needed}).items():
            parts[name].append(value)
    return {name: torch.cat(values) for name, values in parts.items()}
