"""What one layer's rounding does to the network's answer, and what its width costs (ZeroQ, Cai et al. 2020).

sensitivity_l(k) = mean over images of KL(M(x) || M(x) with layer l's weights at k bits)
bit operations   = multiplications * bits of the weights * bits of the activations that they meet
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gdfq_export.allocation import Choice
from gdfq_export.graph import Graph, Node
from gdfq_export.losses import distillation_loss
from gdfq_export.meaning import meaning_of
from gdfq_export.plan import Plan
from gdfq_export.program import FloatProgram
from gdfq_export.progress import Progress
from gdfq_export.quantizers import over_channels, quantize_weight, weight_scales

WIDTHS = (2, 3, 4, 5, 6, 8)
BATCH = 32


def bit_operations_of(graph: Graph, plan: Plan, node: Node, bits: int) -> int:
    """Multiplications of one image, each as large as the product of its operands' widths."""
    positions = math.prod(node.shape[1:])
    count = graph.parameters[node.parameters["weight"]].numel() * positions
    return count * bits * plan.tensors[node.inputs[0]].bits


def widths_worth_asking(costs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(bits, cost) without the widths for which a wider one costs the same."""
    return [(bits, cost) for bits, cost in costs if not any(b > bits and c <= cost for b, c in costs)]


class Sensitivity:
    """Answers how far one layer at one width takes the answers of the float network on some images.

    The divergences are summed in double precision: those of 8 bits are below the rounding of a float's logarithm.
    """

    def __init__(self, graph: Graph, images: Tensor, device: str) -> None:
        self.graph = graph
        self.program = FloatProgram(graph).to(device)
        self.batches = [batch.to(device) for batch in torch.split(images, BATCH)]
        with torch.no_grad():
            self.logits = [self.program(batch).double() for batch in self.batches]
        self.count = len(images)
        self.meaning = meaning_of(graph)

    @torch.no_grad()
    def __call__(self, layer: str, bits: int) -> float:
        """The mean KL with the rounded layer in place of the float one."""
        weight = self.program.parameter(self.graph[layer], "weight")
        kept, qmax = weight.clone(), (1 << (bits - 1)) - 1
        scale = weight_scales(kept, qmax)
        weight.copy_(quantize_weight(kept, scale, qmax) * over_channels(scale, kept))
        total = sum(
            float(distillation_loss(self.program(batch).double(), logits, meaning=self.meaning)) * len(batch)
            for batch, logits in zip(self.batches, self.logits, strict=True)
        )
        weight.copy_(kept)
        return max(total, 0.0) / self.count  # rounding can leave a divergence of nothing below zero


def measure(
    sensitivity: Sensitivity, costs: dict[str, list[tuple[int, int]]], progress: Progress
) -> dict[str, list[Choice]]:
    """Every layer's choices: what each of its widths costs and does."""
    total, done = sum(len(options) for options in costs.values()), 0
    choices: dict[str, list[Choice]] = {}
    for layer, options in costs.items():
        choices[layer] = []
        for bits, cost in options:
            choices[layer].append(Choice(bits, cost, sensitivity(layer, bits)))
            done += 1
            progress("measuring each layer's sensitivity", done, total)
    return choices
