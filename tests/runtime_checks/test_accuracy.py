"""Accuracy on images, with a network that sees colours: its outputs are the means of the three channels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.evaluate import evaluate, preprocessing_of
from gdfq_export.runtime_checks.image_input import ImageInput

COLOURS = {"0_red": (200, 10, 20), "1_green": (10, 200, 20), "2_blue": (20, 10, 200)}
INPUT = {"format": "float-nchw", "shape": [3, 4, 4], "mean": [0.5] * 3, "std": [0.5] * 3, "resize": None}


def colour_network(path: Path, batch: int | str = "n", metadata: dict[str, object] | None = INPUT) -> Path:
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["out"]),
    ]
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 3])
    graph = helper.make_graph(nodes, "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {"gdfq_export": json.dumps({"input": metadata})})
    onnx.save(model, path)
    return path


def pixel_network(path: Path) -> Path:
    """uint8 (N, H, W, C), normalised inside."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["out"], keepdims=0),
    ]
    value = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4, 4, 3])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    graph = helper.make_graph(nodes, "g", [value], [out], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def colour_images(folder: Path, wrong: int = 0, each: int = 4) -> Path:
    """`each` images a class; `wrong` of the red ones are blue."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            shown = COLOURS["2_blue"] if name == "0_red" and number < wrong else colour
            Image.new("RGB", (4, 4), shown).save(folder / name / f"{number}.png")
    return folder


def test_the_share_of_right_answers_is_reported_in_percent(tmp_path: Path) -> None:
    accuracy = evaluate(colour_network(tmp_path / "net.onnx"), colour_images(tmp_path / "data", wrong=3))
    assert (accuracy.top1, accuracy.top5, accuracy.images) == (75.0, 100.0, 12)
    assert accuracy.notes == ()


@pytest.mark.parametrize("batch", [1, 5])
def test_a_fixed_batch_gives_the_same_result(tmp_path: Path, batch: int) -> None:
    accuracy = evaluate(colour_network(tmp_path / "net.onnx", batch), colour_images(tmp_path / "data", wrong=3))
    assert (accuracy.top1, accuracy.images) == (75.0, 12)


def test_more_images_than_a_batch_are_all_counted(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    data = colour_images(tmp_path / "data", each=30)
    accuracy = evaluate(
        colour_network(tmp_path / "net.onnx"), data, on_progress=lambda done, total: seen.append((done, total))
    )
    assert (accuracy.top1, accuracy.images) == (100.0, 90)
    assert seen == [(32, 90), (64, 90), (90, 90)]


def test_a_network_that_takes_pixels_gets_pixels(tmp_path: Path) -> None:
    accuracy = evaluate(pixel_network(tmp_path / "net.onnx"), colour_images(tmp_path / "data", wrong=3))
    assert (accuracy.top1, accuracy.notes) == (75.0, ())


def test_equal_outputs_rank_by_class_index(tmp_path: Path) -> None:
    for name in COLOURS:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (7, 7, 7)).save(tmp_path / "data" / name / "grey.png")
    accuracy = evaluate(colour_network(tmp_path / "net.onnx"), tmp_path / "data")
    assert accuracy.top1 == pytest.approx(100 / 3)


def test_only_the_five_largest_count_for_top_five(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 8], np.tile(np.arange(8.0), 3))
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 8])
    graph = helper.make_graph(nodes, "g", [value], [out], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "n.onnx")
    for label in range(8):  # the outputs grow with the class index: 7 wins, 3 is the fifth
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "data" / str(label) / "x.png")
    accuracy = evaluate(tmp_path / "n.onnx", tmp_path / "data", mean=(0.0,), std=(1.0,))
    assert (accuracy.top1, accuracy.top5) == (12.5, 62.5)


def test_a_file_that_says_nothing_gets_an_assumption_and_a_note(tmp_path: Path) -> None:
    path = colour_network(tmp_path / "net.onnx", metadata=None)
    accuracy = evaluate(path, colour_images(tmp_path / "data"))
    assert accuracy.notes == (
        "net.onnx does not say its mean: assuming 0 for pixels in [0, 1]",
        "net.onnx does not say its std: assuming 1 for pixels in [0, 1]",
    )


def test_options_override_the_file_and_one_value_stands_for_all_channels() -> None:
    spec = ImageInput("x", "float32", (None, 3, 4, 4), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), 8)
    made, notes = preprocessing_of(spec, Path("n.onnx"), (0.5,), None, 6)
    assert (made.mean, made.std, made.resize, notes) == ((0.5,) * 3, (1.0,) * 3, 6, ())


def test_mean_is_ignored_with_a_note_where_the_network_takes_pixels() -> None:
    spec = ImageInput("x", "uint8", (None, 4, 4, 3), None, None, None)
    _, notes = preprocessing_of(spec, Path("n.onnx"), (0.5,), None, None)
    assert "ignored" in notes[0]


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("float32", (None, 10), "has 2 dimensions; images need 4"),
        ("float32", (None, 3, None, None), "no batch of images of one size"),
        ("float32", (None, 5, 4, 4), "no batch of images of one size"),
        ("float32", (None, 4, 4, 3), r"must be float \(N, C, H, W\) or uint8 \(N, H, W, C\)"),
    ],
)
def test_a_network_that_takes_no_images_is_not_supported(
    dtype: str, shape: tuple[int | None, ...], message: str
) -> None:
    with pytest.raises(UnsupportedGraphError, match=message):
        preprocessing_of(ImageInput("x", dtype, shape, None, None, None), Path("n.onnx"), None, None, None)


def test_a_mean_of_the_wrong_length_is_one_sentence() -> None:
    spec = ImageInput("x", "float32", (None, 3, 4, 4), None, None, None)
    with pytest.raises(CheckError, match="mean has 2 values where the model has 3 channels"):
        preprocessing_of(spec, Path("n.onnx"), (0.5, 0.5), None, None)


def test_a_class_beyond_the_outputs_names_the_image(tmp_path: Path) -> None:
    data = colour_images(tmp_path / "data")
    (data / "7_white").mkdir()
    Image.new("RGB", (4, 4)).save(data / "7_white" / "x.png")
    with pytest.raises(CheckError, match=r"7_white/x\.png: class index 7 is beyond the 3 outputs of net\.onnx"):
        evaluate(colour_network(tmp_path / "net.onnx"), data)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    data = colour_images(tmp_path / "data")
    (data / "1_green" / "3.png").write_bytes(b"\x89PNG")
    with pytest.raises(CheckError, match=r"1_green/3\.png: cannot be read"):
        evaluate(colour_network(tmp_path / "net.onnx"), data)
