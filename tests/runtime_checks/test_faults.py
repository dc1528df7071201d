"""Injected faults: every one is detected, with the layer that it is in and its cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from qdq_builder import seal, small_network

from gdfq_export.runtime_checks.causes import CLIPPED_BIAS, NOT_FUSED, OVERFLOW, SATURATION
from gdfq_export.runtime_checks.findings import (
    CHANGED_GRAPH,
    CHANGED_PARAMETERS,
    GOLDEN_DIFFERS,
    MACHINE_DEPENDENT,
    WRONG_BIAS_SCALE,
    findings_of,
)
from gdfq_export.runtime_checks.verify import verify_model

Change = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Fault:
    """A change to a sound file, and what must be found: `sealed` faults were made before the metadata was written."""

    name: str
    change: Change
    layer: str
    cause: str
    sealed: bool
    detail: str = ""


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(item for item in model.graph.initializer if item.name == name)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(item for item in model.graph.node if item.name == name)


def replace(name: str, edit: Callable[[np.ndarray], Any]) -> Change:
    """Replaces a constant by what `edit` makes of (a copy of) it."""

    def change(model: onnx.ModelProto) -> None:
        tensor = constant(model, name)
        array = np.array(edit(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def flip_bit(index: int, bit: int) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array.reshape(-1).view(np.uint8)[index] ^= 1 << bit
        return array

    return edit


def put(index: int | slice, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[index] = value
        return array

    return edit


def next_float(array: np.ndarray) -> np.ndarray:
    return np.nextafter(array, np.float32(np.inf), dtype=np.float32)


def damaged_files() -> Iterator[Fault]:
    """Changes behind the exporter's back: the hashes name the group."""

    def fault(name: str, change: Change, layer: str) -> Fault:
        return Fault(name, change, layer, CHANGED_PARAMETERS, sealed=False)

    for layer in ("stem", "block.conv1", "block.conv2", "depthwise", "classifier"):
        yield fault(f"one bit of a weight of {layer}", replace(f"{layer}/weight", flip_bit(17, 0)), layer)
        yield fault(f"lowest bit of a bias of {layer}", replace(f"{layer}/bias", flip_bit(8, 0)), layer)
    for layer in ("stem", "classifier"):
        yield fault(f"weight scale of {layer}", replace(f"{layer}/weight_scale", next_float), layer)
        yield fault(f"bias scale of {layer}", replace(f"{layer}/bias_scale", next_float), layer)
    for layer in ("input_quantizer", "stem", "block.add", "average"):
        yield fault(f"scale of {layer}", replace(f"{layer}/scale", next_float), layer)
    for layer in ("input_quantizer", "block.conv2"):
        yield fault(f"zero point of {layer}", replace(f"{layer}/zero_point", lambda zero: zero + np.uint8(1)), layer)
    yield fault("sign of a weight", replace("stem/weight", lambda weight: -weight), "stem")
    yield fault(
        "swapped output channels", replace("block.conv1/weight", lambda w: w[[1, 0, *range(2, 8)]]), "block.conv1"
    )
    yield fault("swapped input channels", replace("block.conv2/weight", lambda w: w[:, ::-1]), "block.conv2")
    yield fault("swapped biases", replace("depthwise/bias", lambda bias: bias[::-1]), "depthwise")
    yield fault("a kernel turned around", replace("stem/weight", lambda w: w[:, :, ::-1, ::-1]), "stem")
    for name, change in {
        "another stride": lambda model: set_attribute(model, "stem", strides=[2, 2]),
        "another padding": lambda model: set_attribute(model, "block.conv1", pads=[0, 0, 2, 2]),
        "exchanged operands": lambda model: exchange_inputs(model, "block.add"),
        "a missing Relu": drop_relu,
    }.items():
        yield Fault(name, change, "", CHANGED_GRAPH, sealed=False)
    yield Fault("other stored outputs", replace_golden, "", GOLDEN_DIFFERS, sealed=False)


def set_attribute(model: onnx.ModelProto, name: str, **attributes: Any) -> None:
    target = node(model, name)
    kept = [item for item in target.attribute if item.name not in attributes]
    del target.attribute[:]
    target.attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in attributes.items())])


def exchange_inputs(model: onnx.ModelProto, name: str) -> None:
    target = node(model, name)
    target.input[0], target.input[1] = target.input[1], target.input[0]


def drop_relu(model: onnx.ModelProto) -> None:
    relu = node(model, "stem.relu")
    node(model, "stem.codes").input[0] = relu.input[0]
    model.graph.node.remove(relu)


def replace_golden(model: onnx.ModelProto) -> None:
    other = seal(small_network(seed=5))
    entry = next(item for item in model.metadata_props if item.key == "gdfq_export.golden")
    entry.value = next(item.value for item in other.metadata_props if item.key == "gdfq_export.golden")


def exporters_mistakes() -> Iterator[Fault]:
    """Files that were wrong when they were written: only the proofs and the runtime's own graph can tell."""
    for layer in ("stem", "block.conv1", "block.conv2", "classifier"):
        yield Fault(f"saturating pair in {layer}", saturating_pair(layer), layer, SATURATION, sealed=True)
    yield Fault("too large a bias", replace("stem/bias", put(3, 2**31 - 9)), "stem", OVERFLOW, sealed=True)
    yield Fault(
        "clipped bias", replace("block.conv1/bias", put(2, 2**31 - 1)), "block.conv1", CLIPPED_BIAS, sealed=True
    )
    yield Fault(
        "bias in other units",
        replace("depthwise/bias_scale", lambda s: s * np.float32(1.01)),
        "depthwise",
        WRONG_BIAS_SCALE,
        True,
    )
    yield Fault(
        "a sum with ties",
        replace("block.add/scale", lambda s: np.float32(1 / 16)),
        "block.add",
        MACHINE_DEPENDENT,
        True,
    )
    yield Fault(
        "a sum off by a nudge",
        replace("block.add/scale", lambda s: np.float32(0.056)),
        "block.add",
        MACHINE_DEPENDENT,
        True,
    )
    for name, change, layer, detail in (
        ("float bias", float_bias, "classifier", "float bias"),
        ("no weight zero point", lambda m: node(m, "classifier.weight").input.pop(), "classifier", "no zero point"),
        ("dropped Q", dropped_quantizer, "block.conv1", "instead of a QuantizeLinear"),
        ("dropped Q, as its reader sees it", dropped_quantizer, "block.conv2", "in float"),
        ("signed activations", signed_branch, "block.conv1", "signed activations"),
        ("second Q", second_quantizer, "block.conv2", "2 QuantizeLinear read its result"),
        ("second reader", second_reader, "block.conv2", "2 consumers"),
        ("zero point under a Relu", replace("stem/zero_point", lambda z: np.uint8(9)), "stem", "not the smallest code"),
        ("Clip that cuts", cutting_clip, "stem", "cuts inside"),
        (
            "other scale behind a pool",
            replace("pool/scale", next_float),
            "pool",
            "the scale before and behind it differs",
        ),
        (
            "other zero point behind Flatten",
            replace("flatten/zero_point", lambda z: np.uint8(1)),
            "flatten",
            "the zero point before",
        ),
        ("INT4 weights without Cast", narrow_weights, "block.conv1", "without a Cast"),
        ("operator without kernel", float_operator, "stem.relu", "no 8-bit Elu kernel"),
        ("alpha", lambda m: set_attribute(m, "classifier", alpha=2.0), "classifier", "alpha"),
        ("scale for each channel", channel_scales, "block.conv1", "scale for each channel"),
    ):
        yield Fault(name, change, layer, NOT_FUSED, sealed=True, detail=detail)


def saturating_pair(layer: str) -> Change:
    def edit(weight: np.ndarray) -> np.ndarray:
        if weight.ndim == 4:
            weight[0, :2, 0, 0] = 127  # neighbours in K: the same kernel position, the first two channels
        else:
            weight[0, 4:6] = -127
        return weight

    return replace(f"{layer}/weight", edit)


def float_bias(model: onnx.ModelProto) -> None:
    model.graph.node.remove(node(model, "classifier.bias"))
    model.graph.initializer.append(numpy_helper.from_array(np.linspace(-1, 1, 10, dtype=np.float32), "classifier.bias"))


def dropped_quantizer(model: onnx.ModelProto) -> None:
    for name in ("block.conv1.codes", "block.conv1.codes.float"):
        model.graph.node.remove(node(model, name))
    node(model, "block.conv2").input[0] = "block.conv1.relu"


def signed_branch(model: onnx.ModelProto) -> None:
    """The runtime turns INT8 tensors with one reader into UINT8, and leaves those with two."""
    for layer in ("stem", "block.conv1", "block.conv2", "block.add"):
        replace(f"{layer}/zero_point", lambda zero: np.int8(int(zero) - 128))(model)


def second_quantizer(model: onnx.ModelProto) -> None:
    first = node(model, "block.conv2.codes")
    again = helper.make_node(
        "QuantizeLinear", [first.input[0], "pool/scale", "pool/zero_point"], ["again"], name="again"
    )
    model.graph.node.insert(list(model.graph.node).index(first) + 1, again)
    node_reader = helper.make_node(
        "DequantizeLinear", ["again", "pool/scale", "pool/zero_point"], ["again.float"], name="r"
    )
    model.graph.node.insert(list(model.graph.node).index(again) + 1, node_reader)
    node(model, "block.add").input[0] = "again.float"


def second_reader(model: onnx.ModelProto) -> None:
    tail = helper.make_node("ReduceMax", ["block.conv2.sum"], ["extra"], name="extra")
    model.graph.node.append(tail)
    model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1, 1, 1, 1]))


def cutting_clip(model: onnx.ModelProto) -> None:
    relu = node(model, "stem.relu")
    relu.op_type = "Clip"
    for name, value in {"low": 0.0, "high": 3.0}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"stem.clip/{name}"))
        relu.input.append(f"stem.clip/{name}")


def narrow_weights(model: onnx.ModelProto) -> None:
    tensor = constant(model, "block.conv1/weight")
    codes = np.clip(numpy_helper.to_array(tensor), -7, 7)
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.INT4, codes.shape, codes.flatten().tolist()))
    zero = constant(model, "block.conv1/weight_zero_point")
    zero.CopyFrom(helper.make_tensor(zero.name, TensorProto.INT4, [8], [0] * 8))


def float_operator(model: onnx.ModelProto) -> None:
    node(model, "stem.relu").op_type = "Elu"


def channel_scales(model: onnx.ModelProto) -> None:
    for name in ("scale", "zero_point"):
        replace(f"block.conv1/{name}", lambda value: np.repeat(value, 8))(model)


FAULTS = [*damaged_files(), *exporters_mistakes()]


@pytest.fixture(scope="module")
def sound() -> onnx.ModelProto:
    return small_network()


def test_the_sound_file_has_no_findings(sound: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(seal(sound), tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=6)
    assert result.passed
    assert findings_of(result) == []


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 40
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_in_its_layer_with_its_cause(fault: Fault, sound: onnx.ModelProto, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(sound if fault.sealed else seal(sound))
    fault.change(model)
    onnx.save(seal(model) if fault.sealed else model, tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=6)
    found = findings_of(result)
    assert (fault.layer, fault.cause) in {(item.layer, item.cause) for item in found}
    assert any(fault.detail in item.detail for item in found if item.layer == fault.layer)
    assert fault.cause == NOT_FUSED or not result.passed
