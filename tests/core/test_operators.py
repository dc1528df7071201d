"""What every operator becomes, from PyTorch to the proof of the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from network_parts import SHAPE, Net
from stages import network
from test_pipeline import SETTINGS, loaded
from test_translate import SUPPORTED

from gdfq_export.aten_rules import RULES, Meaning, Rule
from gdfq_export.capture import capture
from gdfq_export.fx_nodes import Arguments
from gdfq_export.operators import BUILT_FROM, KERNEL, KERNELS_OF, KINDS, LIMITS, MEANINGS, kinds_of, page
from gdfq_export.ops import KERNELS
from gdfq_export.passes.canonicalize import EXPANDED
from gdfq_export.passes.integer_forms import INTEGER_FORMS
from gdfq_export.pipeline import run
from gdfq_export.plan import BitWidths
from gdfq_export.runtime_checks.verify import verify_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("method", "bits"), [("calibrate", 8), ("dfq", 4)])
@pytest.mark.parametrize("name", ["rearranged", "mirrored", "mish", "greatest"])
def test_the_file_is_proved_and_nothing_in_it_runs_in_float(name: str, method: str, bits: int, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, method=method, bits=BitWidths(bits, bits))
    run(loaded(network(name)), settings, tmp_path / "model.onnx")
    result = verify_model(tmp_path / "model.onnx", samples=4)
    assert result.passed
    assert result.levels["all"].total.mismatches == 0
    assert result.coverage.float_operators == ()


def test_the_page_of_operators_is_current() -> None:
    assert (ROOT / "docs" / "operators.md").read_text() == page(), "run python scripts/operators_page.py --write"


def test_every_operation_has_a_way_to_run_and_every_way_is_explained() -> None:
    operations = {op for name in RULES for op in MEANINGS.get(name, (name,))}
    assert operations <= KERNELS.keys() | INTEGER_FORMS.keys() | EXPANDED | {"identity", "split"}
    assert BUILT_FROM.keys() == INTEGER_FORMS.keys() | EXPANDED
    assert {kind for op in operations for kind in kinds_of(op)} == KINDS.keys()
    assert {op for op in operations if kinds_of(op) == (KERNEL,)} == KERNELS_OF.keys()
    assert MEANINGS.keys() | LIMITS.keys() <= RULES.keys()


def test_the_rules_give_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every operator of the tests of translation, and a division that stays in float."""
    found: dict[str, set[str]] = {}

    def watched(name: str, rule: Rule) -> Rule:
        def watch(arguments: Arguments) -> Meaning:
            meaning = rule(arguments)
            found.setdefault(name, set()).add(meaning[0])
            return meaning

        return watch

    for name, rule in RULES.items():
        monkeypatch.setitem(RULES, name, watched(name, rule))
    functions = [*SUPPORTED.values(), lambda x: x / (x * x + 1)]
    capture(Net(lambda m, x: torch.cat([function(x).flatten(1) for function in functions], 1)), SHAPE)
    for name, ops in found.items():
        assert ops <= {*MEANINGS.get(name, (name,))}, name
    given = {(name, op) for name, ops in found.items() for op in ops}
    promised = {(name, op) for name in found for op in MEANINGS.get(name, (name,))}
    assert promised - given == set()  # nothing is promised that no test has seen
