"""What is read off a model about its input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.image_input import ImageInput, image_input, random_batch

PATH = Path("net.onnx")


def model(shape: list[Any], kind: int = TensorProto.FLOAT, metadata: str | None = None) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("image", kind, shape)
    out = helper.make_tensor_value_info("out", kind, None)
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["out"])], "g", [value], [out])
    made = helper.make_model(graph)
    if metadata is not None:
        helper.set_model_props(made, {"gdfq_export": metadata})
    return made


def test_metadata_of_the_exporter_is_read() -> None:
    written = {"format": "float-nchw", "shape": [3, 8, 9], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 2], "resize": 10}
    spec = image_input(model(["n", 3, 8, 9], metadata=json.dumps({"input": written, "bits": 8})), PATH)
    assert spec == ImageInput("image", "float32", (None, 3, 8, 9), (0.1, 0.2, 0.3), (1.0, 1.0, 2.0), 10)


def test_a_file_of_another_tool_says_nothing_about_normalisation() -> None:
    spec = image_input(model([1, 3, 8, 8]), PATH)
    assert (spec.mean, spec.std, spec.resize) == (None, None, None)


@pytest.mark.parametrize(
    ("shape", "image"), [(["n", 3, 8, 9], (3, 8, 9)), (["n", 8, 9, 3], (3, 8, 9)), ([1, 1, 8, 1], (1, 8, 1))]
)
def test_the_place_of_the_channels_is_found(shape: list[Any], image: tuple[int, ...]) -> None:
    assert image_input(model(shape), PATH).image_size == image


def test_dynamic_sizes_are_filled_in_from_the_metadata() -> None:
    written = json.dumps({"input": {"format": "uint8-nhwc", "shape": [3, 8, 9]}})
    spec = image_input(model(["n", "h", "w", 3], TensorProto.UINT8, written), PATH)
    assert spec.shape == (None, 8, 9, 3)
    assert spec.channels_last


def test_random_input_has_the_type_and_shape_of_the_graph_with_unknown_sizes_one() -> None:
    generator = np.random.default_rng(0)
    floats = random_batch(ImageInput("x", "float32", (None, 3, None, 4), None, None, None), 2, generator)
    codes = random_batch(ImageInput("x", "uint8", (5, 40, 40, 3), None, None, None), 2, generator)
    assert (floats.shape, floats.dtype) == ((2, 3, 1, 4), np.float32)
    assert (codes.shape, codes.dtype) == ((5, 40, 40, 3), np.uint8)
    assert codes.min() == 0
    assert codes.max() == 255


@pytest.mark.parametrize("metadata", ["{", "[1]", '{"input": 3}'])
def test_damaged_metadata_is_one_sentence(metadata: str) -> None:
    with pytest.raises(CheckError, match=r"net\.onnx: the metadata entry gdfq_export is damaged"):
        image_input(model([1, 3, 8, 8], metadata=metadata), PATH)


def test_an_input_of_another_type_is_not_supported() -> None:
    with pytest.raises(UnsupportedGraphError, match="input image is INT64"):
        image_input(model([1, 3], TensorProto.INT64), PATH)
