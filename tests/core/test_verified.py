"""What is written proves itself: `verify` and `inspect` on files of small networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from network_parts import Net, conv_bn, head, pooled, randomize
from stages import folded_from, images, quantize_graph
from torch import nn
from torch.nn import functional as F

from gdfq_export.cli import main
from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.plan import BitWidths
from gdfq_export.provenance import golden_vectors, stamp
from gdfq_export.runtime_checks.compare import Difference
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.verify import verify_model

INPUT = {"format": "float-nchw", "shape": [3, 8, 8], "mean": [0.5] * 3, "std": [0.25] * 3, "resize": None}


def written(module: nn.Module, path: Path, bits: tuple[int, int] = (8, 8), **facts: Any) -> Path:
    """The file of a network made in a test, with the metadata of a portable file."""
    integer = quantize_graph(folded_from(randomize(module)), BitWidths(*bits))
    model = onnx_from_integer_model(integer)
    golden = golden_vectors(IntegerProgram(integer).eval(), images(integer.graph.input_shape))
    stated = {"target": "portable", "input": INPUT, "float_parts": [], "fakequant_sha256": None, **facts}
    stamp(model, stated, golden)
    onnx.save(model, path)
    return path


def rounded_probabilities() -> nn.Module:
    """A softmax behind logits that are codes, because a mean makes them."""
    return Net(
        lambda m, x: F.log_softmax(F.adaptive_avg_pool2d(m.last(F.relu(m.a(x))), 1).flatten(1), 1),
        a=conv_bn(3, 8),
        last=nn.Conv2d(8, 5, 3),
    )


def probabilities() -> nn.Module:
    return Net(
        lambda m, x: F.softmax(m.fc(pooled(F.relu(m.a(x)))), 1),
        a=conv_bn(3, 8),
        fc=head(8),
    )


ENDINGS = {"Softmax": probabilities, "LogSoftmax": rounded_probabilities}


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=lambda bits: f"W{bits[0]}A{bits[1]}")
@pytest.mark.parametrize("op", ENDINGS)
def test_before_an_ending_the_golden_vectors_hold_the_logits(op: str, bits: tuple[int, int], tmp_path: Path) -> None:
    path = written(ENDINGS[op](), tmp_path / "m.onnx", bits)
    result = verify_model(path, samples=6)
    assert result.passed
    assert result.same_kernels
    assert result.golden == Difference(4 * 5)
    assert result.golden_tensor == result.before_ending
    assert {item.name for item in result.levels["all"].tensors if item.in_float} == {"logits"}
    assert result.before_ending in {item.name for item in result.levels["all"].tensors if not item.in_float}
    assert result.exact_outputs.shape == (6, 5)


def test_other_logits_before_an_ending_are_found(tmp_path: Path) -> None:
    path = written(probabilities(), tmp_path / "m.onnx")
    model = onnx.load(path)
    entry = next(item for item in model.metadata_props if item.key == "gdfq_export.golden")
    other = written(probabilities(), tmp_path / "other.onnx", (4, 4))
    theirs = json.loads(next(item.value for item in onnx.load(other).metadata_props if item.key == entry.key))
    entry.value = json.dumps({**json.loads(entry.value), "outputs": theirs["outputs"]})
    onnx.save(model, path)
    result = verify_model(path, samples=1)
    assert result.golden is not None
    assert result.golden.mismatches
    assert not result.passed


def test_golden_vectors_of_a_tensor_that_is_not_there_are_refused(tmp_path: Path) -> None:
    path = written(probabilities(), tmp_path / "m.onnx")
    model = onnx.load(path)
    entry = next(item for item in model.metadata_props if item.key == "gdfq_export.golden")
    entry.value = json.dumps({**json.loads(entry.value), "tensor": "nothing"})
    onnx.save(model, path)
    with pytest.raises(CheckError, match="no ending of this file is computed from 'nothing'"):
        verify_model(path, samples=1)


def test_inspect_lists_an_ending_alike_in_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(probabilities(), tmp_path / "m.onnx")
    assert main(["inspect", str(path), "--assert-integer"]) == 0
    text = capsys.readouterr().out
    assert main(["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (ending,) = report["endings"]
    assert (ending["op"], report["float_ops"]) == ("Softmax", [])
    assert f"ending: Softmax '{ending['name']}': it stands behind the last DequantizeLinear" in text
    assert "0 float operators, and behind them 1 in float" in text
    assert {node["name"] for node in report["nodes"] if not node["integer"]} == {ending["name"]}


def maximum() -> nn.Module:
    """A layer reads the larger of two layers' results."""
    return Net(
        lambda m, x: m.fc(pooled(F.relu(m.c(torch.max(F.relu(m.a(x)), F.relu(m.b(x))))))),
        a=conv_bn(3, 8),
        b=conv_bn(3, 8),
        c=conv_bn(8, 8),
        fc=head(8),
    )


@pytest.mark.parametrize("bits", [(8, 7), (8, 5), (4, 4)], ids=lambda bits: f"W{bits[0]}A{bits[1]}")
def test_a_layer_that_reads_a_maximum_is_proved_with_few_bits(bits: tuple[int, int], tmp_path: Path) -> None:
    result = verify_model(written(maximum(), tmp_path / "m.onnx", bits), samples=4)
    assert [row for row in result.proofs if not row.proved] == []
    assert result.passed
