"""The float simulation that training saw, against the integers that leave in the file.

Both round every tensor of the plan on the same grid. The simulation sums floats in between, which round where integers
do not, knows nothing of the kernels' own arithmetic, nor of the scales and the few weights that the target changes
after training: codes next to a tie come out differently, and what they feed with them. How often is a fact about the
file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gdfq_export.exact import IntegerProgram
from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.lower import Quantized
from gdfq_export.meaning import meaning_of

IMAGES = 32  # enough for a share, few enough for the largest networks
BATCH = 8


@dataclass(frozen=True)
class SimulationGap:
    """Codes of all rounded tensors over `images`, and the answers."""

    images: int
    elements: int
    differing: int
    max_steps: int
    top1_agreement: float  # percent

    def to_json(self) -> dict[str, Any]:
        """One flat object with the share, for the metadata and for `--json`."""
        return {**asdict(self), "share": self.differing / max(self.elements, 1)}


@torch.no_grad()
def compare_simulation(quantized: Quantized, program: IntegerProgram, images: Tensor) -> SimulationGap:
    """The simulation of `quantized` against `program`, which was lowered from it, on at most `IMAGES` images."""
    images = images[:IMAGES]
    simulation = FakeQuantProgram(quantized, learned_steps=False).eval()
    meaning = meaning_of(quantized.graph)
    elements = differing = max_steps = same = asked = 0
    for batch in torch.split(images, BATCH):
        codes: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor, codes: dict[str, Tensor] = codes) -> None:
            codes[name] = _codes(quantized, name, value)

        logits = simulation(batch, keep)

        def compare(name: str, exact: Tensor, codes: dict[str, Tensor] = codes) -> None:
            nonlocal elements, differing, max_steps
            if name in codes:
                simulated = codes.pop(name)
                exact = exact[tuple(map(slice, simulated.shape))]  # without the channels of `pad_depthwise`
                steps = (simulated.to(torch.int16) - exact.to(torch.int16)).abs()
                elements += steps.numel()
                differing += int(steps.count_nonzero())
                max_steps = max(max_steps, int(steps.max()))

        exact_logits = program.run_codes(batch, compare)
        counts = meaning.same_answers(logits, exact_logits)
        same, asked = same + counts[0], asked + counts[1]
    return SimulationGap(len(images), elements, differing, max_steps, 100 * same / asked)


def _codes(quantized: Quantized, name: str, value: Tensor) -> Tensor:
    """Simulated values, which lie on the grid, as codes."""
    spec = quantized.plan.tensors[name]
    affine = quantized.affines[spec.group]
    return (torch.round(value / (affine.scale * spec.factor)) + affine.zero_point).to(torch.uint8)
