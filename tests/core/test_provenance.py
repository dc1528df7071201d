from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import onnx
import pytest
import torch
from stages import images, integer_model, run_onnx

from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.provenance import FORMAT, fact_hashes, golden_vectors, layer_hashes, stamp


@pytest.fixture
def model() -> onnx.ModelProto:
    return onnx_from_integer_model(integer_model("residual", 8, 8))


def unpack(text: str, dtype: str, shape: list[int]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(shape)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def flip(tensor: onnx.TensorProto) -> None:
    """One bit of the tensor."""
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


@pytest.mark.parametrize(
    ("name", "layer"), [("a.0/weight", "a.0"), ("fc/bias", "fc"), ("stem.0/weight_scale", "stem.0")]
)
def test_one_bit_of_a_layer_changes_the_hash_of_that_layer_alone(model: onnx.ModelProto, name: str, layer: str) -> None:
    before = layer_hashes(model)
    flip(initializer(model, name))
    assert changed(before, layer_hashes(model)) == {layer}


def test_another_shape_of_the_same_bytes_changes_the_hash(model: onnx.ModelProto) -> None:
    before, tensor = layer_hashes(model), initializer(model, "fc/weight")
    dims = list(tensor.dims)[::-1]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    assert changed(before, layer_hashes(model)) == {"fc"}


def test_another_attribute_of_a_node_changes_the_hash_of_the_graph(model: onnx.ModelProto) -> None:
    before = layer_hashes(model)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in conv.attribute if a.name == "strides").ints[0] = 2
    assert changed(before, layer_hashes(model)) == {""}


def test_the_order_of_initializers_does_not_matter(model: onnx.ModelProto) -> None:
    before, tensors = layer_hashes(model), list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    assert layer_hashes(model) == before


@pytest.mark.parametrize("name", ["residual", "gray"])
def test_the_runtime_computes_the_golden_outputs_from_the_golden_codes(name: str) -> None:
    integer = integer_model(name, 8, 8)
    golden = golden_vectors(IntegerProgram(integer), images(integer.graph.input_shape))
    codes = unpack(golden["codes"], "u1", golden["shape"]).repeat(golden["repeat"], 2).repeat(golden["repeat"], 3)
    tensor = integer.tensors["input"]
    x = (codes.astype(np.float32) - np.float32(tensor.zero_point)) * tensor.scale
    outputs = unpack(golden["outputs"], "<f4", golden["output_shape"])
    assert golden["shape"][0] == 4
    assert np.array_equal(run_onnx(onnx_from_integer_model(integer), torch.from_numpy(x)).outputs, outputs)


def test_large_images_are_stored_small_and_repeated() -> None:
    integer = integer_model("residual", 8, 8)
    golden = golden_vectors(IntegerProgram(integer), images((3, 70, 50), 2))
    assert golden["repeat"] == 3
    assert golden["shape"] == [2, 3, 24, 17]


def test_the_metadata_says_how_the_file_was_made(model: onnx.ModelProto) -> None:
    stamp(model, {"method": "gdfq", "seed": 7}, {"codes": ""})
    entries = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert entries["gdfq_export"] == {"format": FORMAT, "method": "gdfq", "seed": 7}
    assert entries["gdfq_export.golden"] == {"codes": ""}
    assert entries["gdfq_export.hashes"] == {**layer_hashes(model), **fact_hashes(entries["gdfq_export"])}


def test_a_stamped_file_still_passes_the_full_check(model: onnx.ModelProto) -> None:
    stamp(model, {"seed": 7}, {})
    onnx.checker.check_model(model, full_check=True)
