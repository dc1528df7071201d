"""Operators that only move elements: the same on codes and on numbers, so they never change a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gdfq_export.runtime_checks.graph import Array, Node

Parameters = Sequence[Array | None]
"""The values of a node's inputs after the first; None where one is left out."""

Move = Callable[[Node, Array, Parameters, int], list[Array]]
"""(node, array, parameters, number of outputs) -> outputs."""


def _setting(node: Node, name: str, parameters: Parameters, index: int) -> list[int] | None:
    """An integer list that older operator versions keep in an attribute and newer ones in an input."""
    if len(parameters) > index and (value := parameters[index]) is not None:
        return [int(item) for item in np.ravel(value)]
    value = node.attributes.get(name)
    return None if value is None else [int(item) for item in np.ravel(value)]


def _reshape(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    shape = _setting(node, "shape", parameters, 0) or []
    if not node.attributes.get("allowzero", 0):
        shape = [array.shape[index] if size == 0 else size for index, size in enumerate(shape)]
    return [array.reshape(shape)]


def _flatten(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    axis = int(node.attributes.get("axis", 1))
    axis += array.ndim if axis < 0 else 0
    return [array.reshape(int(np.prod(array.shape[:axis], dtype=np.int64)), -1)]


def _transpose(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    return [np.transpose(array, node.attributes.get("perm"))]


def _squeeze(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    axes = _setting(node, "axes", parameters, 0)
    return [np.squeeze(array, None if axes is None else tuple(axes))]


def _unsqueeze(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    return [np.expand_dims(array, tuple(_setting(node, "axes", parameters, 0) or ()))]


def _slice(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    starts = _setting(node, "starts", parameters, 0) or []
    ends = _setting(node, "ends", parameters, 1) or []
    axes = _setting(node, "axes", parameters, 2) or list(range(len(starts)))
    steps = _setting(node, "steps", parameters, 3) or [1] * len(starts)
    index = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        below_all = step < 0 and end < -array.shape[axis]
        index[axis] = slice(start, None if below_all else end, step)
    return [array[tuple(index)]]


def _gather(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    indices = parameters[0]
    assert indices is not None
    return [np.take(array, indices.astype(np.int64), axis=int(node.attributes.get("axis", 0)))]


def _split(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    axis = int(node.attributes.get("axis", 0))
    sizes = _setting(node, "split", parameters, 0)
    if sizes is None:
        step = -(-array.shape[axis] // outputs)
        sizes = [step] * outputs
    return list(np.split(array, np.cumsum(sizes)[:-1], axis))


def _expand(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    shape = _setting(node, "shape", parameters, 0) or []
    return [np.array(np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(shape))))]


def _depth_to_space(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    n, c, h, w = array.shape
    block = int(node.attributes["blocksize"])
    if bytes(node.attributes.get("mode", b"DCR")) == b"DCR":
        parts = array.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = array.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [parts.reshape(n, c // block**2, h * block, w * block)]


def _space_to_depth(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    n, c, h, w = array.shape
    block = int(node.attributes["blocksize"])
    parts = array.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return [parts.reshape(n, c * block**2, h // block, w // block)]


def _tile(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    return [np.tile(array, _setting(node, "repeats", parameters, 0) or [1])]


def _identity(node: Node, array: Array, parameters: Parameters, outputs: int) -> list[Array]:
    return [array] * outputs


MOVES: Mapping[str, Move] = {
    "DepthToSpace": _depth_to_space,
    "Dropout": _identity,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def resize_nearest(node: Node, array: Array, parameters: Parameters) -> Array | None:
    """Resize in nearest mode by whole-number factors where it repeats elements; None for any other."""
    settings: Mapping[str, Any] = node.attributes
    scales = parameters[1] if len(parameters) > 1 else None
    sizes = parameters[2] if len(parameters) > 2 else None
    if sizes is not None and sizes.size:
        factors = [size / old for size, old in zip(np.ravel(sizes), array.shape, strict=True)]
    elif scales is not None and scales.size:
        factors = [float(scale) for scale in np.ravel(scales)]
    else:
        return None
    coordinates = bytes(settings.get("coordinate_transformation_mode", b"half_pixel"))
    rounding = bytes(settings.get("nearest_mode", b"round_prefer_floor"))
    repeats = (coordinates == b"half_pixel" and rounding.startswith(b"round")) or (
        coordinates == b"asymmetric" and rounding == b"floor"
    )
    if not repeats or "axes" in settings or any(factor != round(factor) or factor < 1 for factor in factors):
        return None
    for axis, factor in enumerate(factors):
        if factor > 1:
            array = np.repeat(array, int(factor), axis)
    return array
