"""The simulation that training saw is compared with the integers code by code, and the file says how far they are."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_networks import NETWORKS, shape_of
from stages import calibrated, folded, images

from gdfq_export.exact import IntegerProgram
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized
from gdfq_export.plan import BitWidths
from gdfq_export.simulation import compare_simulation


def lowered(quantized: Quantized, target: str = "arm64") -> IntegerProgram:
    return IntegerProgram(integer_model_from_quantized(quantized, TARGETS[target])).eval()


# Ties, and what a different code feeds. Hard-swish adds 3, which is 127.5 codes of 6 / 255: every sum is next to a tie.
LARGEST_SHARE = {"hard_swish": 0.15}


@pytest.mark.parametrize("name", NETWORKS)
def test_few_codes_differ_and_by_few_steps(name: str) -> None:
    quantized = calibrated(folded(name), BitWidths(8, 8))
    gap = compare_simulation(quantized, lowered(quantized), images(shape_of(name), 8))
    assert gap.images == 8
    assert gap.elements >= 8 * 64 * shape_of(name)[0]
    assert gap.differing <= LARGEST_SHARE.get(name, 0.02) * gap.elements
    assert gap.max_steps <= 4


def test_every_rounded_tensor_is_counted() -> None:
    quantized = calibrated(folded("plain"), BitWidths(8, 8))
    shapes = {node.name: node.shape for node in quantized.graph.nodes if node.name in quantized.plan.sources}
    gap = compare_simulation(quantized, lowered(quantized), images(count=3))
    assert gap.elements == 3 * sum(torch.Size(shape).numel() for shape in shapes.values())


def test_another_scale_shows_as_differing_codes_and_another_class() -> None:
    quantized = calibrated(folded("plain"), BitWidths(8, 8))
    program = lowered(quantized)
    before = compare_simulation(quantized, program, images(count=8))
    group = quantized.plan.tensors[next(iter(quantized.plan.absorbed.values()))].group
    wider = {**quantized.affines, group: dataclasses.replace(quantized.affines[group], scale=1.0)}
    after = compare_simulation(dataclasses.replace(quantized, affines=wider), program, images(count=8))
    assert after.differing > before.differing
    assert after.max_steps > before.max_steps
    assert after.to_json()["share"] == after.differing / after.elements


def test_at_most_so_many_images_are_run() -> None:
    quantized = calibrated(folded("plain"), BitWidths(4, 4))
    assert compare_simulation(quantized, lowered(quantized), images(count=40)).images == 32
