"""Scales that are too far apart for a kernel are brought together without moving a clip of the network."""

from __future__ import annotations

import numpy as np
import torch
from network_parts import Net, conv_bn, head, pooled, randomize
from stages import compare_with_runtime, folded_from, images, quantize_graph

from gdfq_export.kernel_ratios import MOST
from gdfq_export.plan import BitWidths


def test_an_operand_far_beyond_the_clip_behind_its_sum_loses_what_the_clip_cuts_away() -> None:
    parts = {"stem": conv_bn(3, 8), "small": conv_bn(8, 8), "large": conv_bn(8, 8), "fc": head(8)}
    module = randomize(
        Net(lambda m, x: m.fc(pooled(torch.clamp(m.small(m.stem(x)) + m.large(m.stem(x)), 0.0, 6.0))), **parts)
    )
    with torch.no_grad():
        module.large[-1].weight.mul_(1e6)  # gamma, as of a batch norm whose variance vanished
    model = quantize_graph(folded_from(module), BitWidths(8, 7))
    (node,) = model.graph.of("add")
    made = model.tensors[model.plan.absorbed[node.name]]
    ratios = sorted(float(model.tensors[name].scale / made.scale) for name in node.inputs)
    assert ratios[0] < 1.0 < ratios[1] <= MOST * 1.05
    expected, found = compare_with_runtime(model, images())
    assert np.array_equal(expected, found)
