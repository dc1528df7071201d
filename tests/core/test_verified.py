"""What is written proves itself: `verify` and `inspect` on files of small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from network_parts import Net, conv_bn, head, pooled, randomize
from stages import folded_from, images, quantize_graph
from torch import nn
from torch.nn import functional as F

from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.plan import BitWidths
from gdfq_export.provenance import golden_vectors, stamp
from gdfq_export.runtime_checks.verify import verify_model

INPUT = {"format": "float-nchw", "shape": [3, 8, 8], "mean": [0.5] * 3, "std": [0.25] * 3, "resize": None}


def written(module: nn.Module, path: Path, bits: tuple[int, int] = (8, 8), **facts: Any) -> Path:
    """The file of a network made in a test, with the metadata of a portable file."""
    integer = quantize_graph(folded_from(randomize(module)), BitWidths(*bits))
    model = onnx_from_integer_model(integer)
    golden = golden_vectors(IntegerProgram(integer).eval(), images(integer.graph.input_shape))
    stamp(model, {"target": "portable", "input": INPUT, **facts}, golden)
    onnx.save(model, path)
    return path


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
