from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_networks import NETWORKS, shape_of
from stages import folded, images, integer_model, run_onnx

from gdfq_export.emit import float_onnx_from_graph, onnx_from_integer_model
from gdfq_export.program import FloatProgram
from gdfq_export.runtime_checks.folding import fold_constants
from gdfq_export.runtime_checks.graph import graph_from_model


def emitted(name: str, weight: int = 8, activation: int = 8) -> onnx.ModelProto:
    return onnx_from_integer_model(integer_model(name, weight, activation))


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def types_of(name: str, ending: str, **bits: int) -> set[int]:
    return {t.data_type for key, t in initializers(emitted(name, **bits)).items() if key.endswith(ending)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_file_computes_what_the_network_computes(name: str) -> None:
    x, graph = images(shape_of(name)), folded(name)
    model = float_onnx_from_graph(graph)
    onnx.checker.check_model(model, full_check=True)
    # 1e-4 of logits near 1: two libraries sum in different orders
    assert np.allclose(run_onnx(model, x).outputs, FloatProgram(graph)(x).numpy(), atol=1e-4)


def test_input_and_output_have_fixed_names_and_a_dynamic_batch() -> None:
    graph = emitted("plain").graph
    (source,), (result,) = graph.input, graph.output
    assert (source.name, result.name) == ("input", "logits")
    for value, rest in ((source, [3, 8, 8]), (result, [5])):
        first, *others = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert [dimension.dim_value for dimension in others] == rest


def test_activations_are_uint8_and_weights_int8() -> None:
    assert types_of("plain", "/zero_point") == {TensorProto.UINT8}
    assert types_of("plain", "/weight") == {TensorProto.INT8}


def test_biases_are_int32() -> None:
    assert types_of("plain", "/bias") == {TensorProto.INT32}


@pytest.mark.parametrize(("bits", "kind"), [(2, TensorProto.UINT8), (3, TensorProto.UINT8), (4, TensorProto.INT4)])
def test_weights_of_4_bits_are_stored_as_int4_and_narrower_ones_as_planes(bits: int, kind: int) -> None:
    assert types_of("plain", "/weight", weight=bits) == {kind}


@pytest.mark.parametrize("bits", [5, 7])
def test_weights_of_5_bits_and_more_are_stored_as_int8(bits: int) -> None:
    assert types_of("plain", "/weight", weight=bits) == {TensorProto.INT8}


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_the_file_holds_the_weights_of_the_integer_model(bits: int) -> None:
    graph = fold_constants(graph_from_model(emitted("residual", bits)))
    kernels = {node.name.rpartition(":")[0] or node.name: node for node in graph.nodes}
    for name, layer in integer_model("residual", bits, 8).layers.items():
        weight, bias = (graph.producers[kernels[name].inputs[index]] for index in (1, 2))
        assert np.array_equal(graph.constants[weight.inputs[0]], layer.q_weight)
        assert np.array_equal(graph.constants[bias.inputs[0]], layer.q_bias)
        assert np.array_equal(graph.constants[weight.inputs[1]], layer.scale)


def test_narrow_files_have_short_names_and_still_say_where_a_kernel_stands() -> None:
    wide, narrow = emitted("residual", 5), emitted("residual", 4)
    assert max(len(name) for node in narrow.graph.node for name in node.output) <= len("logits")
    paths = {node.name.rpartition(":")[0] for node in wide.graph.node if node.op_type in ("Conv", "Add", "Gemm")}
    assert paths == {node.name for node in narrow.graph.node if node.op_type in ("Conv", "Add", "Gemm")}


def test_scales_of_activations_have_rank_0() -> None:
    held = initializers(emitted("hard_swish"))
    assert {tuple(t.dims) for key, t in held.items() if key.endswith(("/scale", "/zero_point"))} == {()}


def test_the_scale_of_a_bias_is_that_of_its_input_times_that_of_its_weight() -> None:
    model = integer_model("plain", 8, 8)
    held = initializers(onnx_from_integer_model(model))
    for name, layer in model.layers.items():
        source = model.tensors[model.graph[name].inputs[0]]
        assert np.array_equal(numpy_helper.to_array(held[f"{name}/bias_scale"]), source.scale * layer.scale)


def test_members_of_a_group_share_one_scale() -> None:
    assert not {"cat/scale", "concat/scale"} & initializers(emitted("concat")).keys()


def test_absorbed_activations_are_left_out() -> None:
    assert {"Relu", "Clip"}.isdisjoint(node.op_type for node in emitted("linear_bottleneck").graph.node)


def test_codes_below_8_bits_are_clipped_behind_every_quantizer() -> None:
    graph = emitted("plain", 4, 4).graph
    clipped = {node.input[0] for node in graph.node if node.op_type == "Clip"}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    image = {node.output[0] for node in quantizers if node.input[0] == graph.input[0].name}
    assert len(image) == 1
    assert clipped == {node.output[0] for node in quantizers} - image


def test_every_kernel_feeds_exactly_one_quantizer() -> None:
    nodes = emitted("residual").graph.node
    for node in nodes:
        if node.op_type in ("Conv", "Add", "GlobalAveragePool"):
            (reader,) = [other for other in nodes if node.output[0] in other.input]
            assert reader.op_type == "QuantizeLinear"


def test_nodes_and_tensors_have_names_of_their_own() -> None:
    graph = emitted("hard_swish").graph
    for names in ([node.name for node in graph.node], [name for node in graph.node for name in node.output]):
        assert len(set(names)) == len(names)
        assert all(names)


def test_the_same_model_is_emitted_in_the_same_bytes() -> None:
    assert emitted("mixed_concat").SerializeToString() == emitted("mixed_concat").SerializeToString()


def bytes_of_weights(name: str, bits: int) -> int:
    held = initializers(emitted(name, bits))
    return sum(len(tensor.raw_data) for key, tensor in held.items() if key.endswith("/weight"))


def test_four_bit_weights_take_half_the_space() -> None:
    layers = len(integer_model("residual", 4, 8).layers)  # each may end in half a byte
    assert bytes_of_weights("residual", 4) <= bytes_of_weights("residual", 8) / 2 + layers
