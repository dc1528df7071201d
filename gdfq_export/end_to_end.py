"""End-to-end tuning: from weights that are rounded well already, the integer network learns as a whole.

    min over q, t, u, b    |Q(x) - F(x)|^2 / |F(x)|^2  +  g mean over blocks |Q_k(x) - F_k(x)|^2 / |F_k(x)|^2

Q_k and F_k are the outputs of block k of the rounded and of the float network, logits are centred. With enough images
the blocks guide the first steps and the logits alone decide the last ones (g falls from 1 to 0); where they are few,
the blocks keep what fits only these images away (g = 1).

Everything is rounded, with straight-through gradients. What is trained is measured in the units in which it matters,
because Adam moves every number by about its rate: weights q in codes, w_hat = s e^t clamp(round(q), -qmax, qmax);
scales as logarithms t and u; biases b in units of the noise that they meet. (Weights in their own units would move
those of channels with small scales by whole codes at once.) Images are moved and mirrored at random, so that few of
them do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.block_program import largest_step, noise_behind
from gdfq_export.blocks import find_blocks
from gdfq_export.checkpoint import Checkpoint
from gdfq_export.distilled import jitter
from gdfq_export.fakequant import FakeQuantProgram, fake_quantize
from gdfq_export.graph import Graph, Node
from gdfq_export.lower import Quantized
from gdfq_export.meaning import meaning_of
from gdfq_export.plan import holds_pixels
from gdfq_export.program import FloatProgram
from gdfq_export.progress import Progress
from gdfq_export.quantizers import Affine, over_channels
from gdfq_export.settings import Tuning, is_large
from gdfq_export.steps import half_cosine, randomness_of
from gdfq_export.stopwatch import Stopwatch

STAGE = "tuning the whole network"
TUNING_STAGE = "tuning"
TIMED = 5
LOST = 3.0  # times the loss at the start: weights moved too fast
TINY = 1e-30


class TunedProgram(FakeQuantProgram):
    """The simulated integer network with weights in codes, and scales and biases as changes of what they were."""

    def __init__(self, quantized: Quantized) -> None:
        super().__init__(quantized, learned_steps=False)
        self.requires_grad_(False)
        self.start = quantized
        graph, plan = quantized.graph, quantized.plan
        self.codes, self.rows, self.moves, self.shifts = (nn.ParameterDict() for _ in range(4))
        self.units: dict[str, float] = {}  # of the biases
        for layer, slot in self.layers.items():
            node, scale = graph[layer], quantized.weight_scales[layer].detach()
            weight = graph.parameters[node.parameters["weight"]].detach()
            self.codes[slot] = nn.Parameter(weight / over_channels(scale, weight))
            self.rows[slot] = nn.Parameter(torch.zeros_like(scale))
            if "bias" in node.parameters:
                self.shifts[slot] = nn.Parameter(torch.zeros_like(scale))
                self.units[slot] = noise_behind(quantized, node)
        groups = plan.groups()
        self.limits = {group: largest_step(groups[group], quantized.affines[group]) for group in groups}
        for group, slot in self.groups.items():
            if not holds_pixels(groups[group]):
                self.moves[slot] = nn.Parameter(torch.zeros(()))

    def scales(self, layer: str) -> Tensor:
        """The trained scales of a layer's weights, (O,)."""
        slot = self.layers[layer]
        return torch.as_tensor(self.weight_steps[slot] * self.rows[slot].exp())

    def step(self, group: str) -> Tensor:
        """The trained scale of a group of activations."""
        slot = self.groups[group]
        scale: Tensor = self.steps[slot]
        return (scale * self.moves[slot].exp()).clamp(max=self.limits[group]) if slot in self.moves else scale

    def bias(self, layer: str) -> Tensor:
        """The trained bias of a layer that has one."""
        slot = self.layers[layer]
        before = self.values[self.keys[self.graph[layer].parameters["bias"]]]
        return torch.add(before, self.shifts[slot], alpha=self.units[slot])

    def _weight(self, node: Node, held: Mapping[str, Tensor]) -> Tensor:
        codes, qmax = self.codes[self.layers[node.name]], self.plan.weights[node.name].qmax
        return fake_quantize(codes, codes.new_ones(()), 0, -qmax, qmax) * over_channels(self.scales(node.name), codes)

    def _held(self, node: Node) -> dict[str, Tensor]:
        held = super()._held(node)
        learned = node.name in self.layers and self.layers[node.name] in self.shifts
        return {**held, "bias": self.bias(node.name)} if learned else held

    @torch.no_grad()
    def quantized(self) -> Quantized:
        """The network with what was trained."""
        parameters, scales = dict(self.graph.parameters), dict(self.start.weight_scales)
        for layer in self.layers:
            roles = self.graph[layer].parameters
            parameters[roles["weight"]] = self._weight(self.graph[layer], {}).cpu().clone()
            scales[layer] = self.scales(layer).cpu().clone()
            if "bias" in roles:
                parameters[roles["bias"]] = self.bias(layer).cpu().clone()
        affines = {
            group: Affine(float(self.step(group)), affine.zero_point) for group, affine in self.start.affines.items()
        }
        graph = Graph(self.graph.nodes, parameters, self.graph.output)
        return dataclasses.replace(self.start, graph=graph, affines=affines, weight_scales=scales)


def tune(
    quantized: Quantized,
    exact: Graph,
    images: Tensor,
    schedule: Tuning,
    seed: int,
    progress: Progress,
    stopwatch: Stopwatch | None = None,
    checkpoint: Checkpoint | None = None,
) -> Quantized:
    """Trains the whole network to return what `exact`, the same network in float, returns.

    With a budget, for as long as is left of it at most. Where the loss leaps up, it begins again at half the rates;
    where it is no number any more, nothing was learned. It runs where the images are.
    """
    device = images.device
    stopwatch, checkpoint = stopwatch or Stopwatch(None), checkpoint or Checkpoint()
    program, teacher = TunedProgram(quantized).train().to(device), FloatProgram(exact).to(device)
    optimizer = torch.optim.Adam(_groups(program, schedule))
    rates = [group["lr"] for group in optimizer.param_groups]
    points = [name for name in block_outputs(quantized) if name != quantized.graph.output]
    steps, first, measured = schedule.steps, 0, stopwatch.limit == math.inf
    slower, start = 1.0, math.inf
    saved = checkpoint.load(TUNING_STAGE)
    if saved is not None:
        program.load_state_dict(saved["program"])
        optimizer.load_state_dict(saved["optimizer"])
        steps, first, measured = saved["steps"], saved["done"], saved["measured"]
        slower, start = saved["slower"], saved["start"]
    began = stopwatch.seconds
    for step in range(first, schedule.steps):
        if not measured and step > first and stopwatch.is_over():
            break
        if not measured and step == first + TIMED:
            steps = min(steps, step + int(stopwatch.left() * TIMED / max(stopwatch.seconds - began, TINY)))
            measured = True
        if step >= steps:
            break
        rates[0] = schedule.weight_rate(steps)  # of the codes, the first group
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = slower * rate * half_cosine(step / steps)
        randomness = randomness_of(seed, step)
        chosen = torch.randint(0, len(images), (schedule.batch,), generator=randomness)
        batch = jitter(images[chosen], schedule.shift, randomness)
        if is_large(batch.shape[1:]) and device.type == "cpu":  # its depthwise kernels take a fifth less in this layout
            batch = batch.contiguous(memory_format=torch.channels_last)
        loss = loss_of(program, teacher, batch, points, guidance=1.0 - schedule.release * step / steps)
        value = float(loss.detach())
        if not math.isfinite(value):
            return quantized
        start = value if step == 0 else start
        if value > LOST * start:  # Adam would need hundreds of steps to forget such gradients
            program = TunedProgram(quantized).train().to(device)
            optimizer = torch.optim.Adam(_groups(program, schedule))
            slower /= 2
            continue
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(STAGE, step + 1, steps)
        if checkpoint.is_due():
            states = {"program": program.state_dict(), "optimizer": optimizer.state_dict()}
            pace = {"slower": slower, "start": start, "measured": measured}
            checkpoint.save(TUNING_STAGE, {**states, **pace, "steps": steps, "done": step + 1})
    return program.quantized()


def loss_of(
    program: TunedProgram, teacher: FloatProgram, x: Tensor, points: list[str], guidance: float = 1.0
) -> Tensor:
    """The relative distance of the logits, and on average that of the blocks' outputs."""
    wanted: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        exact = teacher(x, _keeping(wanted, points))
    logits = program(x, _keeping(found, points))
    meaning = meaning_of(teacher.graph)
    loss = relative_distance(meaning.centred(logits), meaning.centred(exact))
    distances = [relative_distance(found[name], wanted[name]) for name in points]
    return torch.add(loss, torch.stack(distances).mean(), alpha=guidance) if distances else loss


def relative_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """|found - wanted|^2 / |wanted|^2"""
    norm: Tensor = torch.linalg.vector_norm(wanted)
    return F.mse_loss(found, wanted, reduction="sum") / norm.square().clamp_min(TINY)


def block_outputs(quantized: Quantized) -> list[str]:
    """The rounded tensors that one block hands to another."""
    plan = quantized.plan
    return [name for block in find_blocks(quantized.graph, plan) for name in block.outputs if name in plan.sources]


def _keeping(into: dict[str, Tensor], names: list[str]) -> Callable[[str, Tensor], None]:
    wanted = set(names)

    def visit(name: str, value: Tensor) -> None:
        if name in wanted:
            into[name] = value

    return visit


def _groups(program: TunedProgram, schedule: Tuning) -> list[dict[str, Any]]:
    scales = [*program.rows.values(), *program.moves.values()]
    groups = [
        {"params": list(program.codes.values()), "lr": schedule.weight_lr},
        {"params": scales, "lr": schedule.scale_lr},
        {"params": list(program.shifts.values()), "lr": schedule.bias_lr},
    ]
    return [group for group in groups if group["params"]]
