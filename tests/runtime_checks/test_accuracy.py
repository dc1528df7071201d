"""Accuracy on images, with a network that sees colours: its outputs are the means of the three channels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.evaluate import evaluate

COLOURS = RED, GREEN, BLUE = (200, 10, 20), (10, 200, 20), (20, 10, 200)
INPUT = {"format": "float-nchw", "shape": [3, 4, 4], "mean": [0.5] * 3, "std": [0.5] * 3, "resize": None}


def colour_network(
    path: Path, batch: int | str = "n", metadata: dict[str, object] | None = INPUT, output: object = None
) -> Path:
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["out"]),
    ]
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 3])
    graph = helper.make_graph(nodes, "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {"gdfq_export": json.dumps({"input": metadata, "output": output})})
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


def colour_images(
    folder: Path, wrong: int = 0, each: int = 4, names: tuple[str, str, str] = ("0_red", "1_green", "2_blue")
) -> Path:
    """`each` images a class; `wrong` of the red ones are blue."""
    for name, colour in zip(names, COLOURS, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            shown = BLUE if colour == RED and number < wrong else colour
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
    for label in range(3):
        (tmp_path / "data" / f"{label}").mkdir(parents=True)
        Image.new("RGB", (4, 4), (7, 7, 7)).save(tmp_path / "data" / f"{label}" / "grey.png")
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


def test_a_folder_beyond_the_outputs_is_refused(tmp_path: Path) -> None:
    data = colour_images(tmp_path / "data")
    (data / "7_white").mkdir()
    Image.new("RGB", (4, 4)).save(data / "7_white" / "x.png")
    with pytest.raises(CheckError, match=r"data: the folder '7_white' is class 7, but this model has .* 0 to 2"):
        evaluate(colour_network(tmp_path / "net.onnx"), data)


@pytest.mark.parametrize("missing", ["a_red", "c_blue"])
def test_a_missing_class_folder_does_not_shift_the_others(missing: str, tmp_path: Path) -> None:
    data = colour_images(tmp_path / "data", names=("a_red", "b_green", "c_blue"))
    shutil.rmtree(data / missing)
    with pytest.raises(CheckError, match="data: 2 folders for 3 classes, and their names do not say which they are"):
        evaluate(colour_network(tmp_path / "net.onnx"), data)
    accuracy = evaluate(colour_network(tmp_path / "net.onnx"), data, labels=("a_red", "b_green", "c_blue"))
    assert (accuracy.top1, accuracy.images) == (100.0, 8)


def test_labels_of_the_file_tell_the_folders_and_others_override_them(tmp_path: Path) -> None:
    data = colour_images(tmp_path / "data", names=("rot", "gruen", "blau"))  # sorted: blau, gruen, rot
    path = colour_network(tmp_path / "net.onnx", output={"meaning": "logits", "labels": ["rot", "gruen", "blau"]})
    assert evaluate(path, data).top1 == 100.0
    assert evaluate(path, data, labels=("rot", "blau", "gruen")).top1 == pytest.approx(100 / 3)
    with pytest.raises(CheckError, match="2 labels for 3 classes"):
        evaluate(path, data, labels=("rot", "blau"))


@pytest.mark.parametrize("output", [3, {"labels": "rot"}, {"labels": [1, 2, 3]}])
def test_damaged_labels_of_the_file_are_one_sentence(output: object, tmp_path: Path) -> None:
    path = colour_network(tmp_path / "net.onnx", output=output)
    with pytest.raises(CheckError, match=r"metadata 'gdfq_export' is damaged: .*output"):
        evaluate(path, colour_images(tmp_path / "data"))


def one_output(path: Path, *, sigmoid: bool) -> Path:
    """How much more red than blue there is, as a logit or as a probability."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 1], [4.0, 0.0, -4.0])
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["out"]),
    ]
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4])
    out = helper.make_tensor_value_info("out" if sigmoid else "logit", TensorProto.FLOAT, ["n", 1])
    graph = helper.make_graph(nodes if sigmoid else nodes[:-1], "g", [value], [out], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"gdfq_export": json.dumps({"input": INPUT})})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_output_decides_between_the_first_and_the_second_class(sigmoid: bool, tmp_path: Path) -> None:
    data, path = tmp_path / "data", one_output(tmp_path / "net.onnx", sigmoid=sigmoid)
    for name, colours in (("0_blue", ("blue", "blue", "red")), ("1_red", ("red", "red", "red"))):
        (data / name).mkdir(parents=True)
        for number, colour in enumerate(colours):
            Image.new("RGB", (4, 4), colour).save(data / name / f"{number}.png")
    accuracy = evaluate(path, data)
    assert (accuracy.top1, accuracy.top5, accuracy.images) == (pytest.approx(500 / 6), 100.0, 6)
    assert accuracy.decisions == accuracy.top1
    assert accuracy.notes == ()
    shutil.rmtree(data / "0_blue")
    assert evaluate(path, data).top1 == 100.0  # a number tells the class of what is left
    (data / "1_red").rename(data / "red")
    with pytest.raises(CheckError, match="1 folders for 2 classes"):
        evaluate(path, data)
    assert evaluate(path, data, labels=("red", "blue")).top1 == 0.0


def test_several_sigmoids_are_ranked_and_counted_as_decisions(tmp_path: Path) -> None:
    source = onnx.load(colour_network(tmp_path / "net.onnx"))
    source.graph.node.append(helper.make_node("Sigmoid", ["out"], ["decided"]))
    source.graph.output[0].name = "decided"
    onnx.save(source, tmp_path / "net.onnx")
    data = colour_images(tmp_path / "data", wrong=3)
    accuracy = evaluate(tmp_path / "net.onnx", data)
    assert (accuracy.top1, accuracy.top5) == (75.0, 100.0)
    assert accuracy.decisions == pytest.approx(100 * (36 - 2 * 3) / 36)  # blue for red: two of three are wrong
    assert "each output is a decision of its own" in accuracy.notes[0]


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    data = colour_images(tmp_path / "data")
    (data / "1_green" / "3.png").write_bytes(b"\x89PNG")
    with pytest.raises(CheckError, match=r"1_green/3\.png: cannot be read"):
        evaluate(colour_network(tmp_path / "net.onnx"), data)
