"""Average pooling -> a depthwise convolution of ones whose scale is one over the window.

    mean(q - z) = acc / n,   acc = sum(1 * (q - z)),   code = round(acc s_x (1/n) / s_y) + z_y

ONNX Runtime pools codes one at a time in float; its depthwise kernel takes 16 and more at once. A pooling is replaced
only where all its codes stay what they were: where no sum that the window can have comes so close to the middle
between two codes that the two ways of rounding floats could differ. Where the pooling has a range of its own, lowering
looks for a scale without such sums (`lower.py`).

Requires: a lowered model. Windows that leave the padding out of the count have no single divisor and stay.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gdfq_export.arithmetic import mean_is_clear_of_ties
from gdfq_export.graph import Node, rebuild
from gdfq_export.integer import IntegerModel, QLayer


def pool_as_conv(model: IntegerModel) -> IntegerModel:
    """The same integers with convolutions in the place of poolings."""
    layers = {}
    nodes = []
    for node in model.graph.nodes:
        if node.op == "avg_pool" and _keeps_codes(model, node):
            layers[node.name] = _ones(node)
            a = node.attributes
            window = {"stride": a["stride"], "pads": a["pads"], "dilation": (1,) * len(a["kernel"])}
            node = node.replace(op="conv", attributes={**window, "groups": node.shape[0]})
        nodes.append(node)
    if not layers:
        return model
    return dataclasses.replace(model, graph=rebuild(model.graph, nodes), layers={**model.layers, **layers})


def window_of(node: Node) -> int | None:
    """The number of elements that every output is the mean of, padding included; None where they differ."""
    a = node.attributes
    whole = not a["ceil"] and (a["count_include_pad"] or not any(a["pads"]))
    return math.prod(a["kernel"]) if whole else None


def _keeps_codes(model: IntegerModel, node: Node) -> bool:
    source, result, count = model.tensors.get(node.inputs[0]), model.tensors.get(node.name), window_of(node)
    return (
        source is not None
        and result is not None
        and count is not None
        and (mean_is_clear_of_ties(source, result, count))
    )


def _ones(node: Node) -> QLayer:
    """One filter for each channel."""
    channels, kernel = node.shape[0], node.attributes["kernel"]
    return QLayer(
        q_weight=np.ones((channels, 1, *kernel), np.int8),
        scale=np.full(channels, 1 / math.prod(kernel), np.float32),
        q_bias=np.zeros(channels, np.int32),
        bits=8,
    )
