from __future__ import annotations

import pytest
import torch

from gdfq_export.steps import half_cosine, randomness_of


def test_half_a_cosine_falls_from_one_over_a_half_to_zero() -> None:
    assert half_cosine(0.0) == 1.0
    assert half_cosine(0.5) == pytest.approx(0.5)
    assert half_cosine(1.0) == 0.0


def test_each_part_of_each_run_has_random_numbers_of_its_own() -> None:
    drawn = [tuple(torch.rand(4, generator=randomness_of(seed, part)).tolist()) for seed in (0, 1) for part in (0, 1)]
    assert len(set(drawn)) == 4
    assert drawn[3] == tuple(torch.rand(4, generator=randomness_of(1, 1)).tolist())
