"""`gdfq-export evaluate`, run as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from gdfq_export.cli.evaluate import numbers
from gdfq_export.errors import UsageError


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gdfq_export", "evaluate", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Its outputs are the means of the colour channels."""
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["m"]), helper.make_node("Flatten", ["m"], ["out"])]
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [value], [out]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    written = {"format": "float-nchw", "shape": [3, 4, 4], "mean": [0.5] * 3, "std": [0.5] * 3, "resize": None}
    helper.set_model_props(model, {"gdfq_export": json.dumps({"input": written})})
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, colour in (("a_red", (9, 0, 0)), ("b_green", (0, 9, 0)), ("c_blue", (0, 9, 0))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4), colour).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def test_json_has_both_accuracies_and_the_number_of_images(network: Path, data: Path) -> None:
    done = run(network, "--data", data, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["top1"] == pytest.approx(200 / 3)
    assert (result["top5"], result["images"]) == (100.0, 6)
    assert done.stderr == ""


def test_people_get_one_line(network: Path, data: Path) -> None:
    done = run(network, "--data", data, "--mean", "0.1,0.2,0.3", "--std", "1", "--resize", 8)
    assert done.stdout.startswith("top-1 ")
    assert done.stdout.endswith(" of 6 images\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "none"], 4, "none: no such folder"),
        (["--data", ".", "--mean", "half"], 2, "--mean takes numbers"),
        (["--data", ".", "--std", "0"], 2, "--std must be positive"),
        (["--data", ".", "--resize", "0"], 2, "--resize"),
        ([], 2, "--data"),
    ],
)
def test_a_wrong_request_is_one_sentence_with_its_code(
    network: Path, words: list[str], code: int, message: str
) -> None:
    done = run(network, *words, "--json")
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert message in done.stderr
    assert json.loads(done.stdout)["exit_code"] == code


def test_a_folder_too_many_ends_in_code_four_and_labels_help(network: Path, data: Path, tmp_path: Path) -> None:
    (data / "c_blue").rename(data / "b_blue")
    labels = tmp_path / "labels.txt"
    labels.write_text("a_red\nb_green\nb_blue\n")
    done = run(network, "--data", data, "--labels", labels, "--json")
    assert json.loads(done.stdout)["top1"] == pytest.approx(200 / 3)
    (data / "d_white").mkdir()
    for words in ([], ["--labels", labels]):
        done = run(network, "--data", data, *words)
        assert done.returncode == 4
        assert "--labels FILE" in done.stderr


def test_numbers_are_separated_by_commas() -> None:
    assert numbers("--mean", "0.5, 1") == (0.5, 1.0)
    assert numbers("--mean", None) is None
    with pytest.raises(UsageError):
        numbers("--mean", "0.5;1")
