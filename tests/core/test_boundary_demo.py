"""The toy demonstration on its network's own terms; drawing is left to the eye."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

PATH = Path(__file__).parents[2] / "examples" / "boundary_demo" / "boundary_demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("boundary_demo", PATH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules["boundary_demo"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_the_two_classes_lie_above_and_below_the_curve(demo: ModuleType) -> None:
    assert demo.label_of(torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.3, 1.0], [-1.3, -1.0]])).tolist() == [1, 0, 0, 1]


@pytest.mark.slow
def test_only_the_generator_gives_points_the_labels_that_the_network_sees(demo: ModuleType) -> None:
    from gdfq_export.capture import capture
    from gdfq_export.passes import canonicalize
    from gdfq_export.program import FloatProgram

    torch.manual_seed(0)
    randomness = torch.Generator().manual_seed(0)
    program = FloatProgram(canonicalize(capture(demo.trained(randomness), (2,))))

    def recognised(points: object) -> float:
        with torch.no_grad():
            return float((program(points.positions).argmax(1) == points.labels).float().mean())  # type: ignore[attr-defined]

    assert recognised(demo.noise(randomness)) < 0.6
    assert recognised(demo.zeroq(program, randomness)) < 0.6
    assert recognised(demo.gdfq(program, randomness)) > 0.95
