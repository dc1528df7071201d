"""Scales far apart: ONNX Runtime still takes the file, and computes what the PyTorch program computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stages import compare_with_runtime

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.integer import IntegerModel
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.quantizers import Affine

SHAPE = (2, 4, 4)
WINDOW = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
POOL = {"stride": (2, 2), "pads": (0, 0, 0, 0), "kernel": (2, 2), "ceil": False, "count_include_pad": True}
WHOLE = {**POOL, "kernel": (4, 4), "stride": (4, 4)}
ENDS = {
    "add": ("add", ("a", "b"), SHAPE, {}),
    "mul": ("mul", ("a", "b"), SHAPE, {}),
    "add_scalar": ("add_scalar", ("a",), SHAPE, {"value": 0.5}),
    "global_avg_pool": ("global_avg_pool", ("a",), (2, 1, 1), {}),
    "avg_pool": ("avg_pool", ("a",), (2, 2, 2), POOL),
    "avg_pool over all": ("avg_pool", ("a",), (2, 1, 1), WHOLE),
    "leaky_relu": ("leaky_relu", ("a",), SHAPE, {"slope": 0.1}),
    "sigmoid": ("sigmoid", ("a",), SHAPE, {}),
    "concat": ("concat", ("a", "b"), (4, 4, 4), {"axis": 1}),
    "conv": ("conv", ("a",), SHAPE, WINDOW),
}


def network(kind: str, a: float, b: float, c: float) -> Quantized:
    """Two layers a and b with scales of their own, and one operator c of them."""
    op, inputs, shape, attributes = ENDS[kind]
    nodes = [Node(INPUT, INPUT, (), SHAPE)]
    for name in "ab":
        nodes.append(Node(name, "conv", (INPUT,), SHAPE, WINDOW, {"weight": f"{name}.w"}, name))
    if kind == "concat":  # so that the operands cannot share a range
        nodes.append(Node("r", "relu", ("b",), SHAPE, place="r"))
        inputs = ("a", "r")
    held = {"weight": "c.w"} if op == "conv" else {}
    nodes.append(Node("c", op, inputs, shape, attributes, held, "c"))
    identity = torch.eye(2).view(2, 2, 1, 1)
    scales = {"a": a, "b": b, "r": b, "c": c, INPUT: 1.0}
    weights = {"a.w": identity * a, "b.w": identity * b, "c.w": identity}
    graph = Graph(tuple(nodes), weights, "c")
    plan = make_plan(graph, BitWidths(8, 8))
    zero = {group: 0 if members[0].symmetry == "unsigned" else 117 for group, members in plan.groups().items()}
    affines = {group: Affine(scales[group], zero[group]) for group in plan.groups()}
    steps = {name: torch.full((2,), {"a": a, "b": b, "c": 1.0}[name] / 127) for name in plan.weights}
    return Quantized(graph, plan, affines, steps)


def codes() -> torch.Tensor:
    """All codes of the input in both channels, in different order."""
    values = torch.arange(256.0).view(16, 1, 4, 4) - 117
    return torch.cat([values, values.flip(0)], 1)


def lowered(quantized: Quantized, target: str) -> IntegerModel:
    return integer_model_from_quantized(quantized, TARGETS[target])


FAR = [(exponent, "portable") for exponent in (-40, -25, -13, 9, 17, 24, 40)] + [(40, "x86-vnni")]


def far_apart(kind: str, exponent: int) -> Quantized:
    """What c reads has steps 1.37 * 2^exponent times those of c."""
    c = 1.37 * 2.0**-8 if exponent > 0 else 1.37 * 2.0**8
    return network(kind, c * 1.37 * 2.0**exponent, 1.0, c)


@pytest.mark.parametrize(("exponent", "target"), FAR)
@pytest.mark.parametrize("kind", ENDS)
def test_scales_far_apart_give_a_file_that_runs_and_agrees(kind: str, exponent: int, target: str) -> None:
    model = lowered(far_apart(kind, exponent), target)
    expected, found = compare_with_runtime(model, codes())
    assert np.array_equal(expected, found)


@pytest.mark.parametrize("kind", ENDS)
def test_scales_that_all_kernels_take_stay_as_they_are(kind: str) -> None:
    quantized = network(kind, 0.5, 0.5, 0.01)
    model = lowered(quantized, "x86-vnni")
    for name, tensor in model.tensors.items():
        assert tensor.scale == np.float32(quantized.affines[model.plan.tensors[name].group].scale)


def test_no_step_of_a_mean_is_lost_where_its_scale_grows() -> None:
    """A sum of 16 codes is a whole number of sixteenths of a step, and the mean has 128 codes for each of these."""
    model = lowered(far_apart("global_avg_pool", 40), "portable")
    assert model.tensors["c"].scale <= model.tensors["a"].scale / 16


def clipped(op: str, exponent: int, *, read_twice: bool = False) -> Quantized:
    """The same with a clip to 0..6 behind c, which its quantizer does; `a` may be read once more behind that."""
    quantized = far_apart(op, exponent)
    nodes = [*quantized.graph.nodes, Node("d", "clip", ("c",), SHAPE, {"low": 0.0, "high": 6.0}, place="d")]
    if read_twice:
        nodes.append(Node("f", "add", ("d", "a"), SHAPE, place="f"))
    last = nodes[-1].name
    nodes.append(Node("e", "conv", (last,), SHAPE, WINDOW, {"weight": "c.w"}, "e"))
    graph = Graph(tuple(nodes), quantized.graph.parameters, "e")
    plan = make_plan(graph, BitWidths(8, 8))
    scale = 6 / 255
    affines = {"a": Affine(scale * 2.0**exponent * 1.37, 117), "b": Affine(1.0, 117), INPUT: Affine(1.0, 117)}
    affines |= {"d": Affine(scale, 0), "e": Affine(scale, 117), "f": Affine(1.0, 117)}
    steps = {name: torch.full((2,), affines[name].scale / 127) for name in plan.weights}
    return Quantized(graph, plan, affines, steps)


@pytest.mark.parametrize("exponent", [9, 17, 24, 40])
def test_a_sum_with_a_constant_becomes_a_table_where_a_larger_scale_would_move_a_clip(exponent: int) -> None:
    quantized = clipped("add_scalar", exponent)
    model = lowered(quantized, "portable")
    assert model.tensors["d"].scale == np.float32(6 / 255)
    expected, found = compare_with_runtime(model, codes())
    assert np.array_equal(expected, found)


def test_a_product_before_a_clip_is_refused_by_its_place() -> None:
    with pytest.raises(UnsupportedModelError, match=r"at c reads .* clip"):
        lowered(clipped("mul", 24), "x86-vnni")


def test_a_sum_before_a_clip_is_refused_where_its_operand_is_read_elsewhere_too() -> None:
    with pytest.raises(UnsupportedModelError, match=r"at c reads .* clip"):
        lowered(clipped("add", 24, read_twice=True), "x86-vnni")


@pytest.mark.parametrize("scale", [1e-42, 1e39])
def test_a_scale_that_float32_does_not_hold_is_refused_by_its_tensor(scale: float) -> None:
    with pytest.raises(UnsupportedModelError, match="values of c at c"):
        lowered(network("conv", 1.0, 1.0, scale), "portable")
