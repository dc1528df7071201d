"""What verify says about the codes that each activation was seen to use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from qdq_builder import seal, small_network

from gdfq_export.runtime_checks.quantizer_of import operator_of
from gdfq_export.runtime_checks.range_use import RangeUse
from gdfq_export.runtime_checks.reference import reference_graph
from gdfq_export.runtime_checks.verify import verify_model


def use_of(model: onnx.ModelProto, path: Path) -> dict[str, RangeUse]:
    onnx.save(seal(model), path)
    return {item.layer: item for item in verify_model(path, samples=6).activations}


def test_every_layer_has_its_use_and_none_has_two(tmp_path: Path) -> None:
    model = small_network(bits=4)
    onnx.save(seal(model), tmp_path / "m.onnx")
    activations = verify_model(tmp_path / "m.onnx", samples=4).activations
    layers = [item.layer for item in activations]
    assert len(set(layers)) == len(layers)
    assert {"stem", "block.conv1", "block.conv2", "block.add", "depthwise", "pool", "average"} <= set(layers)
    assert all(0 <= item.used <= 1 for item in activations)


def test_behind_a_clip_on_codes_the_narrow_range_counts(tmp_path: Path) -> None:
    stem = use_of(small_network(bits=4), tmp_path / "m.onnx")["stem"]
    assert stem.tensor == "stem.clipped"
    assert (stem.possible.low, stem.possible.high) == (0, 15)
    assert stem.to_json()["used"] == round((stem.seen.high - stem.seen.low) / 15, 4)


def test_a_scale_far_too_wide_shows_as_little_use(tmp_path: Path) -> None:
    model = small_network()
    before = use_of(model, tmp_path / "m.onnx")["stem"].used
    scale = next(item for item in model.graph.initializer if item.name == "stem/scale")
    scale.CopyFrom(numpy_helper.from_array(np.float32(16 * numpy_helper.to_array(scale)), scale.name))
    after = use_of(model, tmp_path / "m.onnx")["stem"]
    assert after.used < 0.2 < before
    assert after.possible.high == 255


def test_the_operator_is_found_behind_relu_quantizer_and_clip() -> None:
    graph = reference_graph(small_network(bits=4))
    assert operator_of(graph, "stem.clipped").name == operator_of(graph, "stem.codes").name == "stem"
    assert operator_of(graph, "input_quantizer.codes").op == "QuantizeLinear"
