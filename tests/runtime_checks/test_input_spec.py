"""What is read off a model about its input: the metadata where the file is ours, one guess where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.graph import graph_from_model
from gdfq_export.runtime_checks.input_spec import (
    FEATURES,
    PIXELS,
    ImageFacts,
    InputSpec,
    guess_channels_last,
    input_spec,
    preprocessing_of,
    random_batch,
)


def read(shape: list[Any] | None, written: object = None, kind: int = TensorProto.FLOAT) -> InputSpec:
    value = helper.make_tensor_value_info("image", kind, shape)
    out = helper.make_tensor_value_info("out", kind, None)
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["out"])], "g", [value], [out])
    model: onnx.ModelProto = helper.make_model(graph)
    return input_spec(graph_from_model(model), {} if written is None else {"input": written})


def taking(dtype: str = "float32", sizes: tuple[int | None, ...] = (3, 4, 4), **facts: Any) -> InputSpec:
    """An input that images go to; bytes lie channels last."""
    return InputSpec("x", sizes, np.dtype(dtype), None, guess_channels_last((None, *sizes)), ImageFacts(**facts))


NCHW = {"format": "float-nchw"}
NHWC = {"format": "uint8-nhwc"}


@pytest.mark.parametrize(
    ("shape", "written", "last", "image"),
    [
        pytest.param(["n", 3, 8, 9], NCHW | {"shape": [3, 8, 9]}, False, (3, 8, 9), id="ours, channels first"),
        pytest.param(["n", 8, 9, 3], NHWC | {"shape": [3, 8, 9]}, True, (3, 8, 9), id="ours, channels last"),
        pytest.param(["n", 3, 9, 3], NCHW | {"shape": [3, 9, 3]}, False, (3, 9, 3), id="ours, as wide as channels"),
        pytest.param(["n", 5, 9, 3], NCHW | {"shape": [5, 9, 3]}, False, (5, 9, 3), id="ours, no colour image"),
        pytest.param(["n", 9, 3, 3], NHWC | {"shape": [3, 9, 3]}, True, (3, 9, 3), id="ours, bytes 3 wide"),
        pytest.param(["n", 1, 8, 1], NCHW | {"shape": [1, 8, 1]}, False, (1, 8, 1), id="ours, grey"),
        pytest.param(["n", "h", "w", 3], NHWC | {"shape": [3, 8, 9]}, True, (3, 8, 9), id="ours, dynamic sizes"),
        pytest.param(["n", 3, "h", "w"], NCHW | {"shape": [3, 8, 9]}, False, (3, 8, 9), id="ours, dynamic, first"),
        pytest.param(["n", 3, 8, 9], None, False, (3, 8, 9), id="foreign, channels first"),
        pytest.param(["n", 8, 9, 3], None, True, (3, 8, 9), id="foreign, channels last"),
        pytest.param(["n", 3, 9, 3], None, False, (3, 9, 3), id="foreign, both can be channels"),
        pytest.param([1, 1, 8, 1], None, False, (1, 8, 1), id="foreign, grey"),
        pytest.param(["n", 8, 9, 1], None, True, (1, 8, 9), id="foreign, grey, channels last"),
        pytest.param(["n", 3, "h", "w"], None, False, (3, None, None), id="foreign, dynamic sizes"),
        pytest.param(["n", "c", "h", "w"], None, False, (None, None, None), id="foreign, all dynamic"),
        pytest.param(["n", 10], None, False, (10,), id="foreign, no image"),
    ],
)
def test_the_place_of_the_channels_is_the_metadatas_or_a_guess(
    shape: list[Any], written: object, last: bool, image: tuple[int | None, ...]
) -> None:
    spec = read(shape, written)
    assert (spec.channels_last, spec.image_size) == (last, image)


def test_sizes_that_nothing_states_are_those_of_a_usual_image() -> None:
    assert read(["n", "c", "h", "w"]).shape == (3, 224, 224)
    assert read(["n", "h", "w", 3]).shape == (224, 224, 3)
    assert read([2, 3, 8, 9]).shape == (3, 8, 9)


def test_a_batch_that_the_file_insists_on_is_told() -> None:
    assert (read([4, 3, 8, 9]).batch, read(["n", 3, 8, 9]).batch) == (4, None)


def test_metadata_of_the_exporter_is_read() -> None:
    written = NCHW | {"shape": [3, 8, 9], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 2], "resize": 10}
    assert read(["n", 3, 8, 9], written).image == ImageFacts((0.1, 0.2, 0.3), (1.0, 1.0, 2.0), 10, None, PIXELS)
    newer = written | {"range": [-2, 2.5], "values": "features", "channel_order": None}
    assert read(["n", 3, 8, 9], newer).image == ImageFacts((0.1, 0.2, 0.3), (1.0, 1.0, 2.0), 10, (-2.0, 2.5), FEATURES)


def test_a_file_of_another_tool_says_nothing_about_normalisation() -> None:
    assert read([1, 3, 8, 8]).image == ImageFacts()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (3, "its input is no object"),
        ({"shape": [0, 8, 8]}, "has a shape of"),
        ({"shape": [0]}, "3 numbers are expected"),
        ({"shape": "3x8x8"}, "has a shape of '3x8x8'"),
        ({"mean": ["a"]}, "has a mean of"),
        ({"std": []}, "has a std of"),
        ({"range": [1]}, "2 numbers are expected"),
        ({"format": "float-hw"}, "has a format of 'float-hw', and this version knows float-nchw, uint8-nhwc"),
    ],
)
def test_damaged_metadata_is_one_sentence(written: object, message: str) -> None:
    with pytest.raises(CheckError, match=rf"metadata 'gdfq_export' is damaged: .*{message}"):
        read([1, 3, 8, 8], written)


@pytest.mark.parametrize(
    ("shape", "written"),
    [(["n", 8, 9, 3], NCHW | {"shape": [3, 8, 9]}), (["n", 3, 16, 16], NCHW | {"shape": [3, 8, 8]}), (["n", 9], NCHW)],
)
def test_a_graph_that_is_not_what_the_metadata_says_is_refused(shape: list[Any], written: dict[str, Any]) -> None:
    with pytest.raises(CheckError, match="but the metadata says"):
        read(shape, {"shape": [3, 8, 9]} | written)


def test_an_input_without_a_shape_is_not_supported() -> None:
    with pytest.raises(UnsupportedGraphError, match="input 'image' has no shape"):
        read(None)


def test_random_input_has_the_type_and_shape_of_the_input() -> None:
    generator = np.random.default_rng(0)
    floats = random_batch(taking(sizes=(3, 8, 4)), 2, generator)
    halves = random_batch(taking("float16"), 2, generator)
    codes = random_batch(InputSpec("x", (40, 40, 3), np.dtype(np.uint8), 5, True), 2, generator)
    assert (floats.shape, floats.dtype, halves.dtype) == ((2, 3, 8, 4), np.float32, np.float16)
    assert (codes.shape, codes.dtype, codes.min(), codes.max()) == ((5, 40, 40, 3), np.uint8, 0, 255)


def test_an_input_of_another_type_cannot_be_fed() -> None:
    wide = read([1, 3, 8, 8], kind=TensorProto.INT64)
    with pytest.raises(UnsupportedGraphError, match="input image is int64, and only"):
        random_batch(wide, 1, np.random.default_rng(0))
    with pytest.raises(UnsupportedGraphError, match=r"net\.onnx: input image is int64"):
        preprocessing_of(wide, "net.onnx", None, None, None)


def test_options_override_the_file_and_one_value_stands_for_all_channels() -> None:
    spec = taking(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), resize=8)
    made, notes = preprocessing_of(spec, "n.onnx", (0.5,), None, 6)
    assert (made.mean, made.std, made.resize, notes) == ((0.5,) * 3, (1.0,) * 3, 6, ())


def test_mean_is_ignored_with_a_note_where_the_network_takes_pixels() -> None:
    _, notes = preprocessing_of(taking("uint8", (4, 4, 3)), "n.onnx", (0.5,), None, None)
    assert "ignored" in notes[0]


@pytest.mark.parametrize(
    ("dtype", "sizes", "message"),
    [
        ("float32", (10,), "has 2 dimensions; images need 4"),
        ("float32", (3, None, None), "no image of one size"),
        ("float32", (5, 4, 4), "no image of one size"),
        ("float32", (4, 4, 3), r"must be float \(N, C, H, W\) or uint8 \(N, H, W, C\)"),
        ("uint8", (3, 4, 4), r"must be float \(N, C, H, W\) or uint8 \(N, H, W, C\)"),
    ],
)
def test_a_network_that_takes_no_images_is_not_supported(
    dtype: str, sizes: tuple[int | None, ...], message: str
) -> None:
    with pytest.raises(UnsupportedGraphError, match=message):
        preprocessing_of(taking(dtype, sizes), "n.onnx", None, None, None)


def test_a_mean_of_the_wrong_length_is_one_sentence() -> None:
    with pytest.raises(CheckError, match="mean has 2 values where the model has 3 channels"):
        preprocessing_of(taking(), "n.onnx", (0.5, 0.5), None, None)


def test_a_network_that_takes_features_wants_to_be_told_how_pixels_become_them() -> None:
    spec = taking(mean=(0.0,) * 3, std=(1.0,) * 3, values=FEATURES, accepted=(-2.0, 2.0))
    for mean, std in ((None, None), ((0.5,), None), (None, (0.25,))):
        with pytest.raises(CheckError, match=r"n\.onnx takes features, not the pixels .*: give --mean and --std"):
            preprocessing_of(spec, "n.onnx", mean, std, None)
    made, notes = preprocessing_of(spec, "n.onnx", (0.5,), (0.25,), None)
    assert (made.mean, made.std, notes) == ((0.5,) * 3, (0.25,) * 3, ())


def test_pixels_beyond_the_accepted_range_are_said_to_be_clipped() -> None:
    spec = taking(mean=(0.5,) * 3, std=(0.5,) * 3, accepted=(-1.0, 1.0))
    assert preprocessing_of(spec, "n.onnx", None, None, None)[1] == ()
    _, notes = preprocessing_of(spec, "n.onnx", (0.5,), (0.25,), None)
    assert notes == (
        "pixels become -2 to 2, but n.onnx accepts -1 to 1 and clips the rest: its --mean and --std are others",
    )
