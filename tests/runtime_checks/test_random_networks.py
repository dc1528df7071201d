"""Random networks: every tensor of every file is exact, all proofs of a portable file hold, and nothing is in float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_networks import ACTIVATIONS, KINDS, SWITCHES, Spec, file_from_spec, specs

from gdfq_export.runtime_checks.verify import verify_model

WIDTHS = ((8, 8), (4, 4), (2, 8), (8, 2), (3, 5), (5, 3), (6, 7), (7, 6))
EACH = 5
FEATURES = {
    *KINDS,
    *ACTIVATIONS,
    *SWITCHES,
    *(f"{letter}{bits}" for letter in "WA" for bits in range(2, 9)),
    *("odd channels", "odd size", "even size", "deep", "shallow"),
}
COMMON = settings(suppress_health_check=list(HealthCheck), database=None)


@torch.no_grad()
def check(spec: Spec, path: Path) -> None:
    program = file_from_spec(spec, path)
    result = verify_model(path, samples=8)
    report = result.to_json()
    assert report["levels"]["all"]["mismatches"] == 0, spec
    assert report["levels"]["all"]["elements"] > 0
    assert report["float_ops"] == [], spec
    assert report["not_proved"] == [], spec
    assert result.passed, spec
    logits = program(torch.from_numpy(result.inputs)).numpy()
    assert np.array_equal(logits, next(iter(result.outputs.values()))), spec


def test_forty_random_networks_are_exact_and_integer_and_have_every_feature(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for index, bits in enumerate(WIDTHS):  # hypothesis repeats itself within so few, so widths and kinds are dealt out

        @seed(index)
        @settings(COMMON, max_examples=EACH, phases=[Phase.generate])
        @given(specs((KINDS[index % len(KINDS)],), bits))
        def run(spec: Spec) -> None:
            seen.update({"networks", *spec.features()})
            check(spec, tmp_path / "model.onnx")

        run()
    assert seen["networks"] == len(WIDTHS) * EACH == 40
    assert FEATURES - seen.keys() == set()


@pytest.mark.slow
def test_other_random_networks_each_time(tmp_path: Path) -> None:
    @settings(COMMON, max_examples=300)
    @given(specs())
    def run(spec: Spec) -> None:
        check(spec, tmp_path / "model.onnx")

    run()
