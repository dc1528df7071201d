"""`gdfq-export models`, run as a program."""

from __future__ import annotations

import json
import subprocess
import sys


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gdfq_export", "models", *words], capture_output=True, text=True)


def test_every_name_has_a_line_with_size_classes_and_weights() -> None:
    done = run()
    assert done.returncode == 0
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert lines["mobilenetv2"] == ["3x224x224", "1000", "download", "mobilenetv2_w1"]
    assert lines["resnet20_cifar10"] == ["3x32x32", "10", "embedded"]
    assert lines["resnet200"][2] == "--weights"


def test_the_filter_keeps_names_with_the_text() -> None:
    names = [line.split()[0] for line in run("--filter", "VGG16").stdout.splitlines()[1:]]
    assert "bn_vgg16" in names
    assert all("vgg16" in name for name in names)


def test_json_is_one_object_on_stdout() -> None:
    done = run("--json", "--filter", "inceptionv3")
    (entry,) = json.loads(done.stdout)["models"]
    assert entry["input_size"] == [3, 299, 299]
    assert (entry["num_classes"], entry["weights"], entry["resize"]) == (1000, "download", 342)
    assert done.stderr == ""


def test_operators_are_listed_with_how_they_run() -> None:
    done = run("--operators")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert done.returncode == 0
    assert "QLinearConv" in lines["conv2d"]
    assert "table" in lines["mish"]
    assert "moved codes" in lines["repeat"]
    assert "threshold" in lines["softplus"]


def test_json_lists_operators_too() -> None:
    done = run("--operators", "--json", "--filter", "pixel_un")
    (entry,) = json.loads(done.stdout)["operators"]
    assert (entry["operator"], entry["runs"]) == ("pixel_unshuffle", ["built from others"])
    assert done.stderr == ""
