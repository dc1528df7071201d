"""Networks in half or double precision are computed in float32."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from network_parts import SHAPE, Net, conv_bn, head, pooled, randomize
from stages import images
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.capture import capture
from gdfq_export.graph import digest_of
from gdfq_export.models.sources import load_model
from gdfq_export.precision import OTHER_FLOATS
from gdfq_export.program import FloatProgram

NAMES = [str(dtype).removeprefix("torch.") for dtype in OTHER_FLOATS]
FACTORY = """
import torch
from torch import nn

class Casts(nn.Sequential):
    def forward(self, x):
        return super().forward(x.to(self[0].weight.dtype).{cast}()).float()

def build():
    return Casts(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)
    ).to(torch.{dtype})
"""


def forward(m: nn.Module, x: Tensor) -> Tensor:
    return m.fc(pooled(F.relu(m.stem(x) * torch.ones(4, 1, 1, dtype=x.dtype))))


def classifier(function: Callable[[nn.Module, Tensor], Tensor] = forward) -> nn.Module:
    torch.manual_seed(0)
    return randomize(Net(function, stem=conv_bn(3, 4), fc=head(4))).requires_grad_(False)


def saved(module: nn.Module, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """An exported program in `dtype`, through a file."""
    example = torch.zeros(2, *SHAPE, dtype=dtype)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize("dtype", OTHER_FLOATS)
def test_a_program_in_another_precision_is_the_graph_of_its_weights_in_float32(dtype: torch.dtype) -> None:
    narrow = classifier().to(dtype)
    program = saved(narrow, dtype)
    found = capture(program, SHAPE)
    assert {value.dtype for value in found.parameters.values()} == {torch.float32}
    expected = capture(narrow.float(), SHAPE)
    assert digest_of(found) == digest_of(expected)
    assert torch.equal(FloatProgram(found)(images()), FloatProgram(expected)(images()))


@pytest.mark.parametrize("dtype", NAMES)
def test_a_factory_in_another_precision_is_computed_in_float32_which_is_said_once(
    dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cast = {"float16": "half", "bfloat16": "bfloat16", "float64": "double"}[dtype]
    (tmp_path / "net.py").write_text(FACTORY.format(dtype=dtype, cast=cast))
    with caplog.at_level(logging.WARNING):
        loaded = load_model(f"{tmp_path}/net.py:build", input_size=SHAPE, mean=(0.5,), std=(0.5,))
        graph = capture(loaded.module, SHAPE)
    said = [text for text in caplog.messages if "float32" in text]
    assert said == [f"{tmp_path}/net.py:build is in torch.{dtype}: it is computed in float32"]
    assert FloatProgram(graph)(images()).dtype == torch.float32


def test_autocast_inside_a_network_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def automatic(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(m, x)

    found, expected = capture(classifier(automatic), SHAPE), capture(classifier(), SHAPE)
    assert torch.equal(FloatProgram(found)(images()), FloatProgram(expected)(images()))
    assert "parts of the model are in torch.bfloat16: they are computed in float32" in caplog.text
