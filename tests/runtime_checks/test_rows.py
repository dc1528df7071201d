"""Rows: what each check says, which of them fail a file, and that the exit code is decided by nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from qdq_builder import seal, small_network

from gdfq_export.cli import main
from gdfq_export.compare import TorchComparison
from gdfq_export.runtime_checks.compare import Difference
from gdfq_export.runtime_checks.comparison import LevelResult, TensorResult
from gdfq_export.runtime_checks.coverage import FloatOperator
from gdfq_export.runtime_checks.proofs import Proof
from gdfq_export.runtime_checks.rows import FAIL, NOTE, OK, rows_of
from gdfq_export.runtime_checks.verify import VerifyResult, verify_model

WRONG = Difference(100, 1, 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "m.onnx"
    onnx.save(seal(small_network()), path)
    return path


@pytest.fixture(scope="module")
def sound(path: Path) -> VerifyResult:
    return verify_model(path, samples=1)


def level(difference: Difference) -> LevelResult:
    return LevelResult((TensorResult("x", difference, False, 0, 1),))


def in_float(result: VerifyResult) -> VerifyResult:
    operator = FloatOperator("elu", "Elu", "x", "no kernel")
    return dataclasses.replace(result, coverage=dataclasses.replace(result.coverage, float_operators=(operator,)))


def test_a_sound_file_has_no_row_but_ok_and_what_is_told_beside(sound: VerifyResult) -> None:
    assert {row.state for row in rows_of(sound)} == {OK, NOTE}
    (note,) = [row.text for row in rows_of(sound) if row.state == NOTE]
    assert note.startswith("activation ranges")


OVERFLOWS = (Proof("stem", "overflow", False, 1, "largest accumulator"),)
FAULTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "a difference at level all": ({"levels": {"all": level(WRONG)}}, {"1 of 100 elements": FAIL}),
    "a difference at another level": (
        {"levels": {"all": level(Difference(100)), "basic": level(WRONG)}},
        {"level all": OK, "level basic: 1 of 100": NOTE},
    ),
    "a proof that fails": ({"proofs": OVERFLOWS}, {"not proved: no int32 overflow": FAIL, "proved: no int16": OK}),
    "a proof that was not promised": (
        {"proofs": OVERFLOWS, "portable": False},
        {"not proved: no int32 overflow": NOTE},
    ),
    "other golden outputs": ({"golden": WRONG}, {"golden vectors: 1 of 100": FAIL}),
    "a changed layer": ({"changed_groups": ("stem", "")}, {"changed: stem, the graph": FAIL}),
    "other kernels": ({"same_kernels": False}, {"runs other kernels": FAIL}),
    "other kernels of a foreign file": ({"same_kernels": False, "ours": False}, {"runs other kernels": NOTE}),
    "other outputs": ({"same_outputs": False, "ours": False}, {"gives other outputs": FAIL}),
    "weights that are inputs": ({"overridable": ("w",)}, {"can be overridden at run time": FAIL}),
    "weights of a foreign file that are inputs": (
        {"overridable": ("w",), "ours": False},
        {"can be overridden at run time": NOTE},
    ),
    "something missing": ({"missing": ("the x",)}, {"lacks the x": NOTE}),
    "something missing, strictly": ({"missing": ("the x",), "strict": True}, {"lacks the x": FAIL}),
    "float parts that are declared": (
        {"float_parts": ("softmax at a",), "golden": None},
        {"left in float by --allow-float": NOTE, "golden vectors: none": NOTE},
    ),
    "nothing exact": (
        {"levels": {"all": LevelResult((TensorResult("x", WRONG, True, 0, 1),))}},
        {"nothing to compare": NOTE},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_row_and_fails_where_it_was_promised(name: str, sound: VerifyResult) -> None:
    changes, expected = FAULTS[name]
    result = dataclasses.replace(sound, **changes)
    for text, state in expected.items():
        assert [row.state for row in rows_of(result) if text in row.text] == [state]
    assert result.passed == (FAIL not in expected.values())


def test_a_float_operator_is_a_note_and_fails_a_file_that_does_not_name_it_only_strictly(sound: VerifyResult) -> None:
    result = in_float(sound)
    assert [row.state for row in rows_of(result) if "in float" in row.text or "float parts" in row.text] == [NOTE] * 2
    assert result.passed
    assert not dataclasses.replace(result, strict=True).passed
    assert dataclasses.replace(result, strict=True, float_parts=("elu",)).passed


def results(sound: VerifyResult) -> Iterator[VerifyResult]:
    """Every two faults together, in turns in files of this tool and of others."""
    whose = itertools.cycle(itertools.product([True, False], repeat=2))
    for (first, second), (ours, strict) in zip(itertools.combinations(FAULTS, 2), whose, strict=False):
        changes = {**FAULTS[first][0], **FAULTS[second][0], "ours": ours, "strict": strict}
        yield dataclasses.replace(sound, **changes)


def test_the_exit_code_is_1_exactly_where_a_printed_row_fails(
    sound: VerifyResult, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = itertools.cycle([None, TorchComparison(10, 0, 0, 100.0), TorchComparison(10, 1, 1, 100.0)])
    codes = set()
    for result, program in zip(results(sound), programs, strict=False):
        monkeypatch.setattr("gdfq_export.runtime_checks.verify.verify_model", lambda *_, value=result, **__: value)
        row = rows_of(sound)[0] if program is None else program.row()
        compared = (program, row)
        monkeypatch.setattr("gdfq_export.cli.verify._compare_program", lambda *_, value=compared: value)
        code = main(["verify", str(path)])
        lines = capsys.readouterr().out.splitlines()
        assert all(line.split()[0] in (OK, NOTE, FAIL) or line.startswith("  ") for line in lines[:-1])
        assert (code == 1) == any(line.startswith(FAIL) for line in lines)
        assert ("failed" if code else "passed") in lines[-1]
        assert main(["verify", str(path), "--json"]) == code
        report = json.loads(capsys.readouterr().out)
        assert report["passed"] == (code == 0)
        assert [row["state"] for row in report["rows"]] == [line.split()[0] for line in lines[:-1] if line[0] != " "]
        codes.add(code)
    assert codes == {0, 1}


def test_weights_that_are_inputs_are_named_by_the_file(tmp_path: Path) -> None:
    model = small_network()
    weight = next(item for item in model.graph.initializer if item.name == "stem/weight")
    model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    onnx.save(seal(model), tmp_path / "ours.onnx")
    onnx.save(model, tmp_path / "foreign.onnx")
    ours, foreign = (verify_model(tmp_path / f"{name}.onnx", samples=1) for name in ("ours", "foreign"))
    assert ours.overridable == foreign.overridable == ("stem/weight",)
    assert not ours.passed
    assert foreign.passed
