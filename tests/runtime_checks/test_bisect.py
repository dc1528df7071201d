"""A runtime that computes differently: the first differing kernel is found, with its cause and a small file.

The runtime here is honest, so a stand-in changes one tensor that it shows, by arithmetic written out anew below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from qdq_builder import Builder, small_network

from gdfq_export.runtime_checks.bisect import bisect_model
from gdfq_export.runtime_checks.causes import NOT_FUSED, OTHER, OVERFLOW, SATURATION, TIE
from gdfq_export.runtime_checks.findings import findings_of
from gdfq_export.runtime_checks.sessions import Session
from gdfq_export.runtime_checks.verify import verify_model

Tensors = Mapping[str, np.ndarray]
Fault = Callable[[Tensors], np.ndarray]
ZERO_IN = 128


def one_convolution(largest: int = 127, scale: float = 1 / 32) -> onnx.ModelProto:
    """input -> codes -> Conv 3x3 -> codes, all scales powers of two so that exact ties occur."""
    net = Builder(3)
    x = net.quantize("input", "in", 1 / 64, ZERO_IN)
    y = net.conv(x, "layer", (4, 4), relu=False, zero_point=100, largest=largest, scale=scale)
    net.constant("layer/weight_scale", np.full(4, 1 / 1024, np.float32))
    net.constant("layer/bias_scale", np.full(4, 1 / 65536, np.float32))
    return net.model(y.codes, (4, 6, 6), output_type=TensorProto.UINT8, output_rank=4)


def accumulate(model: onnx.ModelProto, codes: np.ndarray, saturate: bool = False) -> np.ndarray:
    """The accumulators of `one_convolution`, element by element; int16 pair sums where `saturate`."""
    constants = {item.name: numpy_helper.to_array(item).astype(np.int64) for item in model.graph.initializer}
    weight, bias = constants["layer/weight"], constants["layer/bias"]
    padded = np.pad(codes.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=ZERO_IN)
    out = np.empty((codes.shape[0], len(weight), *codes.shape[2:]), np.int64)
    for image, channel, row, column in np.ndindex(*out.shape):
        products = []
        for i, j in np.ndindex(3, 3):
            for c in range(codes.shape[1]):
                products.append(padded[image, c, row + i, column + j] * weight[channel, c, i, j])
        pairs = [sum(products[index : index + 2]) for index in range(0, len(products), 2)]
        if saturate:
            pairs = [min(max(pair, -32768), 32767) for pair in pairs]
        out[image, channel, row, column] = sum(pairs) - ZERO_IN * weight[channel].sum() + bias[channel]
    return out


def codes_of(values: np.ndarray) -> np.ndarray:
    return np.clip(values + 100, 0, 255).astype(np.uint8)


def half_away(model: onnx.ModelProto) -> Fault:
    def fault(tensors: Tensors) -> np.ndarray:
        scaled = accumulate(model, tensors["in.codes"]) / 2048
        return codes_of(np.sign(scaled) * np.floor(np.abs(scaled) + 0.5))

    return fault


def truncated(model: onnx.ModelProto) -> Fault:
    return lambda tensors: codes_of(np.trunc(accumulate(model, tensors["in.codes"]) / 2048))


def saturated(model: onnx.ModelProto) -> Fault:
    return lambda tensors: codes_of(np.rint(accumulate(model, tensors["in.codes"], saturate=True) / 2048))


def without_bias(model: onnx.ModelProto) -> Fault:
    bias = numpy_helper.to_array(next(item for item in model.graph.initializer if item.name == "layer/bias"))

    def fault(tensors: Tensors) -> np.ndarray:
        return codes_of(np.rint((accumulate(model, tensors["in.codes"]) - bias.reshape(1, -1, 1, 1)) / 2048))

    return fault


def break_runtime(monkeypatch: pytest.MonkeyPatch, tensor: str, fault: Fault) -> None:
    honest = Session.run

    def run(self: Session, feed: np.ndarray, outputs: list[str] | None = None) -> dict[str, np.ndarray]:
        tensors = honest(self, feed, outputs)
        if tensor in tensors and len(tensors) > 1:
            tensors[tensor] = fault(tensors)
        return tensors

    monkeypatch.setattr(Session, "run", run)


@pytest.mark.parametrize(
    ("make", "cause"),
    [(half_away, TIE), (truncated, OTHER), (saturated, SATURATION), (without_bias, OTHER)],
    ids=lambda item: getattr(item, "__name__", item),
)
def test_a_convolution_that_computes_differently_is_recognised(
    make: Callable[[onnx.ModelProto], Fault], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = one_convolution()
    onnx.save(model, tmp_path / "model.onnx")
    break_runtime(monkeypatch, "layer.codes", make(model))
    result = verify_model(tmp_path / "model.onnx", samples=6)
    first = bisect_model(tmp_path / "model.onnx", samples=6)
    assert not result.passed
    assert first is not None
    assert (first.layer, first.tensor, first.cause) == ("layer", "layer.codes", cause)
    assert ("layer", cause) in {(item.layer, item.cause) for item in findings_of(result, first)}


def test_an_accumulator_that_wraps_is_recognised_on_the_honest_runtime(tmp_path: Path) -> None:
    model = one_convolution()
    bias = next(item for item in model.graph.initializer if item.name == "layer/bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(4, 2**31 - 9, np.int32), bias.name))
    onnx.save(model, tmp_path / "model.onnx")
    first = bisect_model(tmp_path / "model.onnx", samples=4)
    assert first is not None
    assert (first.layer, first.cause) == ("layer", OVERFLOW)


def test_saturation_is_recognised_behind_a_float_bias_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime quantizes a constant float bias when it loads the file, as NNCF leaves them."""
    model = one_convolution()
    fault = saturated(model)  # with the integer bias, which is the float one in units of the accumulator
    dequantize = next(node for node in model.graph.node if node.name == "layer.bias")
    model.graph.node.remove(dequantize)
    bias = next(item for item in model.graph.initializer if item.name == "layer/bias")
    values = (numpy_helper.to_array(bias) / 65536).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "layer.bias"))
    onnx.save(model, tmp_path / "model.onnx")
    break_runtime(monkeypatch, "layer.codes", fault)
    first = bisect_model(tmp_path / "model.onnx", samples=6)
    assert first is not None
    assert (first.layer, first.cause) == ("layer", SATURATION)


def off_by_one(name: str) -> Fault:
    return lambda tensors: np.where(tensors[name] < 255, tensors[name] + 1, 254).astype(np.uint8)


@pytest.mark.parametrize(
    ("tensor", "layer", "fault"),
    [
        ("block.add.codes", "block.add", off_by_one("block.add.codes")),
        ("average.codes", "average", off_by_one("average.codes")),
        ("pool.codes", "pool", off_by_one("pool.codes")),
        ("block.conv1.codes", "block.conv1", lambda tensors: tensors["block.conv1.codes"][:, ::-1]),
        ("depthwise.codes", "depthwise", lambda tensors: np.roll(tensors["depthwise.codes"], 1, axis=3)),
        ("logits", "classifier", lambda tensors: np.nextafter(tensors["logits"], np.float32(np.inf))),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_a_fault_of_the_runtime_is_found_in_its_layer(
    tensor: str, layer: str, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(small_network(), tmp_path / "model.onnx")
    break_runtime(monkeypatch, tensor, fault)
    first = bisect_model(tmp_path / "model.onnx", samples=4)
    assert first is not None
    assert (first.layer, first.tensor, first.cause) == (layer, tensor, OTHER)


def test_a_sum_in_another_instruction_sets_arithmetic_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Builder()
    x = net.quantize("input", "in", 1 / 32)
    y = net.binary("Add", x, x, "sum", 1 / 16)
    model = net.model(y.codes, (3, 8, 8), output_type=TensorProto.UINT8, output_rank=4)
    onnx.save(model, tmp_path / "model.onnx")
    # (a + a) / 2 is exact on every machine; (a + a) / 4 lands on ties, which arm64 rounds away from zero
    break_runtime(monkeypatch, "sum.codes", lambda tensors: tensors["in.codes"])
    assert bisect_model(tmp_path / "model.onnx", samples=4) is None
    monkeypatch.undo()
    net.constant("sum/scale", np.float32(1 / 8))
    onnx.save(net.model(y.codes, (3, 8, 8), output_type=TensorProto.UINT8, output_rank=4), tmp_path / "model.onnx")
    break_runtime(monkeypatch, "sum.codes", lambda tensors: (tensors["in.codes"].astype(int) + 1 >> 1).astype(np.uint8))
    first = bisect_model(tmp_path / "model.onnx", samples=4)
    assert first is not None
    assert first.cause == OTHER
    assert "NEON" in first.detail


def test_at_another_level_the_first_difference_is_an_operator_kept_in_float(tmp_path: Path) -> None:
    model = one_convolution()
    onnx.save(model, tmp_path / "model.onnx")
    onnx.save(small_network(), tmp_path / "network.onnx")
    found = [bisect_model(tmp_path / name, samples=8, level="basic") for name in ("model.onnx", "network.onnx")]
    causes = {item.cause for item in found if item is not None}
    assert causes == {NOT_FUSED}


def test_the_small_file_reproduces_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(small_network(), path)
    first = bisect_model(path, samples=8, level="basic")
    assert first is not None
    small, arrays = first.write_beside(path)
    assert small.parent == arrays.parent == tmp_path
    stored = np.load(arrays)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(small), settings)
    feeds = {item.name: stored[f"input:{item.name}"] for item in session.get_inputs()}
    output = session.run(None, feeds)[0]
    assert np.array_equal(output, stored["found"])
    assert not np.array_equal(output, stored["expected"])
    assert len(onnx.load(small).graph.node) < 10


def test_nothing_is_found_where_nothing_differs(tmp_path: Path) -> None:
    onnx.save(small_network(), tmp_path / "model.onnx")
    assert bisect_model(tmp_path / "model.onnx", samples=4) is None
