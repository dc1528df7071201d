"""A run that was stopped at any point and resumed ends with the bytes of one that was not."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stages import network
from torch import Tensor, nn

from gdfq_export import checkpoint as checkpoint_module
from gdfq_export import pipeline
from gdfq_export.checkpoint import WorkDirectory
from gdfq_export.errors import DivergedError, InputFileError, UsageError
from gdfq_export.models.sources import LoadedModel
from gdfq_export.pipeline import run
from gdfq_export.plan import BitWidths
from gdfq_export.progress import Progress, silent
from gdfq_export.settings import Schedule, Settings

SCHEDULE = Schedule(
    batch=8, warmup_steps=5, steps=6, steps_per_epoch=2, decay_epochs=2, calibration_images=16, student_lr=1e-2
)
SETTINGS = Settings("gdfq", BitWidths(4, 4), SCHEDULE, "mse", "portable", seed=0)


class Killed(BaseException):
    """What a signal does: nobody catches it."""


def killed_at(call: int) -> Progress:
    """Stops the run at the n-th report of progress."""
    count = 0

    def report(what: str, done: float, total: float) -> None:
        nonlocal count
        count += 1
        if count == call:
            raise Killed

    return report


HALF = (0.5, 0.5, 0.5)
LOADED = LoadedModel("small", network("residual"), (3, 8, 8), HALF, HALF, None, None, "factory", None)


def start(out: Path, settings: Settings = SETTINGS, progress: Progress = silent, **work: bool) -> dict[str, Any]:
    directory = WorkDirectory(out.with_suffix(".work"), **work)
    return run(LOADED, settings, out, companions=False, progress=progress, work=directory)


@pytest.fixture(scope="module", autouse=True)
def _captured_once() -> Iterator[None]:
    """Capturing takes a second, and every run here has the same network and plan."""
    prepared = pipeline.prepare(LOADED, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "prepare", lambda loaded, settings: prepared)
        yield


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "m.onnx"
    start(out)
    return out.read_bytes()


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "FEWEST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint_module, "LARGEST_SHARE", 1e9)


@pytest.mark.usefixtures("always_due")
@pytest.mark.parametrize("calls", [(3, 4), (6,), (9, 2, 2), (14,)])
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    calls: tuple[int, ...], expected: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    for call in calls:
        with pytest.raises(Killed):
            start(out, progress=killed_at(call), resume=True)
        assert not out.exists()
    start(out, resume=True)
    assert out.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.usefixtures("always_due")
@pytest.mark.parametrize("call", [3, 6, 9, 13])  # in the warm-up, behind it, in the turns, and behind them
def test_a_killed_run_of_dfqf_ends_with_the_bytes_of_an_uninterrupted_one(call: int, tmp_path: Path) -> None:
    asked = dataclasses.replace(SETTINGS, method="dfqf")
    start(tmp_path / "whole.onnx", asked)
    out = tmp_path / "m.onnx"
    with pytest.raises(Killed):
        start(out, asked, progress=killed_at(call), resume=True)
    seen: list[str] = []
    start(out, asked, progress=lambda what, done, total: seen.append(what), resume=True)
    assert out.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert ("training the generator" in seen) is (call < 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "whole.onnx"]


@pytest.mark.usefixtures("always_due")
def test_a_diverged_run_of_dfqf_keeps_the_state_that_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, module = dataclasses.replace(SETTINGS, method="dfqf"), importlib.import_module("gdfq_export.methods.dfqf")
    update, calls = module.update_student, itertools.count()

    def diverging(student: nn.Module, optimizer: Any, images: Tensor, *rest: Any) -> float:
        return float(update(student, optimizer, images * (math.nan if next(calls) == 2 else 1.0), *rest))

    with monkeypatch.context() as patch:
        patch.setattr(module, "update_student", diverging)
        with pytest.raises(DivergedError, match=r"learning rate.*kept in .*--resume"):
            start(tmp_path / "m.onnx", asked)
    seen: list[str] = []
    start(tmp_path / "m.onnx", asked, progress=lambda what, done, total: seen.append(what), resume=True)
    assert "training the generator" not in seen


@pytest.mark.usefixtures("always_due")
def test_a_resumed_run_does_not_repeat_what_was_saved(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        start(tmp_path / "m.onnx", progress=killed_at(12))  # in the fifth turn
    seen = []
    start(tmp_path / "m.onnx", progress=lambda what, done, total: seen.append((what, done)), resume=True)
    assert [entry for entry in seen if "generator" in entry[0]] == [
        ("training generator and student in turns", 5),
        ("training generator and student in turns", 6),
    ]


def test_a_run_that_was_killed_while_it_wrote_writes_again(
    expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.onnx"

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.onnx.checker, "check_model", killed)
        with pytest.raises(Killed):
            start(out)
    assert checkpoint_module.is_writing(out.with_suffix(".work"))
    start(out, resume=True)
    assert out.read_bytes() == expected


@pytest.mark.usefixtures("always_due")
def test_other_settings_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    with pytest.raises(Killed):
        start(out, progress=killed_at(3))
    with pytest.raises(InputFileError, match=r"schedule\.steps = 6, and now it is 7"):
        start(out, dataclasses.replace(SETTINGS, schedule=dataclasses.replace(SCHEDULE, steps=7)), resume=True)
    assert not out.exists()


@pytest.mark.usefixtures("always_due")
def test_a_divergence_keeps_the_last_good_state_and_a_lower_rate_resumes_it(tmp_path: Path) -> None:
    wild = dataclasses.replace(SETTINGS, schedule=dataclasses.replace(SCHEDULE, student_lr=1e30))
    with pytest.raises(DivergedError, match=r"step \d.*learning rate.*--resume"):
        start(tmp_path / "m.onnx", wild)
    assert (tmp_path / "m.work" / "generator.state").exists()
    seen = []
    start(tmp_path / "m.onnx", progress=lambda what, done, total: seen.append(what), resume=True)
    assert "training the generator" not in seen
    assert (tmp_path / "m.onnx").exists()


def test_a_budget_that_is_too_small_for_one_step_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--budget of .* too small.*give at least"):
        start(
            tmp_path / "m.onnx",
            dataclasses.replace(SETTINGS, schedule=dataclasses.replace(SCHEDULE, budget_seconds=1e-6)),
        )
