"""Which methods read which option: the table is what the code does, and what it says is refused.

Every method runs once on a small network while the fields of its settings write down that they are read. An option
belongs to a method where a value of it changes one of these fields.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor, nn
from user_folder import GOOD, HEAD, SIZE, build, fails

from gdfq_export.ablations import Ablations
from gdfq_export.cli import main
from gdfq_export.cli.app import app
from gdfq_export.cli.switches import (
    PRESET_BESIDE_BUDGET,
    READERS,
    UNREAD_UNTRAINED,
    UNREAD_WITH_CALIBRATION_DATA,
    UNREAD_WITH_REAL_DATA,
    option_name,
)
from gdfq_export.image_store import ImageStore
from gdfq_export.methods import METHODS, Outcome, Task
from gdfq_export.models.random_weights import set_batch_norm_statistics
from gdfq_export.models.sources import LoadedModel
from gdfq_export.names import METHOD_NAMES
from gdfq_export.pipeline import prepare
from gdfq_export.plan import BitWidths
from gdfq_export.progress import silent
from gdfq_export.real_images import RealImages
from gdfq_export.settings import Distillation, Reconstruction, Schedule, Settings, Tuning
from gdfq_export.stopwatch import Stopwatch

HALF = (0.5, 0.5, 0.5)
RECORDED = (Settings, Schedule, Ablations, Distillation, Reconstruction, Tuning, RealImages, ImageStore)
FOLDER = "FOLDER"  # stands for one of images
OTHER_VALUES = {
    "generator_lr": ["0.5"],
    "student_lr": ["0.5"],
    "size_budget": ["123kB"],
    "bitops_budget": ["123G"],
    "reading": ["code"],
    "calibration_data": [FOLDER],
    "real_data": [FOLDER],
    "images": ["images.safetensors"],
    "no_generator_ce": [],
    "no_generator_bns": [],
    "no_student_ce": [],
    "no_student_kd": [],
    "moving_statistics": [],
    "separate": [],
    "stop_threshold": ["50"],
    "keep_trained": [],
    "preset": ["standard"],
    "budget": ["10m"],
    "ranges": ["kl"],
}
OF_THE_NETWORK = {
    *("model", "weights", "input_size", "input_range", "mean", "std", "num_classes", "no_pretrained", "labels"),
    "allow_pickle",
}
OF_THE_FILE = {
    *("bits", "weight_bits", "act_bits", "first_last", "image_bits", "sum_bits", "override", "target", "input_format"),
    *("allow_float", "without", "no_companions", "report", "out"),
}
OF_THE_RUN = {
    *("method", "config", "seed", "device", "threads", "dry_run", "force", "resume", "work_dir", "as_json", "quiet"),
    "min_agreement",
}


class Images:
    """Some labelled images."""

    name = "some"
    num_classes = 5

    def __len__(self) -> int:
        return 16

    def for_classes(self, classes: int) -> Images:
        """Their classes are numbers already."""
        return self

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        made = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return made[list(indices)], torch.tensor([index % 5 for index in indices])


def network() -> LoadedModel:
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    set_batch_norm_statistics(module, (3, 16, 16), 0)
    return LoadedModel("small", module.eval(), (3, 16, 16), HALF, HALF, 5, None, "random", None)


def settings(method: str, **schedule: Any) -> Settings:
    turns = Schedule(batch=8, warmup_steps=2, steps=2, steps_per_epoch=1, calibration_images=16)
    return Settings(
        *(method, BitWidths(4, 4), dataclasses.replace(turns, **schedule), "mse", "portable", 0),
        distillation=Distillation(images=16, batch=16, steps=2, shift=1),
        reconstruction=Reconstruction(2, batch=8),
        tuning=Tuning(2, batch=8),
    )


def outcome_of(asked: Settings, real: RealImages, seconds: float | None = None) -> Outcome:
    prepared = prepare(network(), asked)
    parts = (prepared.captured, prepared.folded, prepared.plan, prepared.image)
    stopwatch = Stopwatch(seconds)
    return METHODS[asked.method](Task(*parts, asked, silent, real=real, stopwatch=stopwatch))


@contextmanager
def recorded() -> Iterator[set[str]]:
    """The fields of settings that are read meanwhile, as Class.field; those that are merely copied do not count."""
    found: set[str] = set()
    copying = [False]

    def recording(kind: type, names: set[str]) -> Callable[[Any, str], Any]:
        def read(self: Any, name: str) -> Any:
            if name in names and not copying[0]:
                found.add(f"{kind.__name__}.{name}")
            return object.__getattribute__(self, name)

        return read

    def replace(value: Any, **changes: Any) -> Any:
        copying[0] = True
        try:
            return plain(value, **changes)
        finally:
            copying[0] = False

    plain = dataclasses.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataclasses, "replace", replace)
        now = itertools.count(step=0.01)  # a clock that goes on by itself, whatever else the machine does
        patch.setattr("time.monotonic", lambda: next(now))
        for kind in RECORDED:
            names = {field.name for field in dataclasses.fields(kind)}
            patch.setattr(kind, "__getattribute__", recording(kind, names), raising=False)
        yield found


CALIBRATION, TRAINING = RealImages(calibration=Images()), RealImages(training=Images())
SITUATIONS: dict[str, tuple[RealImages, dict[str, Any]]] = {
    "alone": (RealImages(), {}),
    "budget": (RealImages(), {"budget_seconds": 0.5}),
    "calibration_data": (CALIBRATION, {}),
    "real_data": (TRAINING, {}),
}


@pytest.fixture(scope="module")
def reads() -> Callable[[str, str], set[str]]:
    """What a method reads of its settings."""
    known: dict[tuple[str, str], set[str]] = {}

    def of(method: str, situation: str = "alone") -> set[str]:
        if (method, situation) not in known:
            real, schedule = SITUATIONS[situation]
            asked = settings(method, **schedule)
            with recorded() as found:
                outcome_of(asked, real, schedule.get("budget_seconds"))
            known[method, situation] = found
        return known[method, situation]

    return of


def flat(value: Any) -> dict[str, Any]:
    """Class.field -> its value, of a dataclass and all that are in it."""
    found = {}
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        inside = type(part) in RECORDED
        found |= flat(part) if inside else {f"{type(value).__name__}.{field.name}": part}
    return found


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., set[str]]:
    """What an option changes of the settings, beside other options."""
    work = tmp_path_factory.mktemp("changes")
    (work / "net.py").write_text(HEAD + GOOD)

    def asked(words: list[str]) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []

        def run(loaded: LoadedModel, asked: Settings, out: Path, **rest: Any) -> None:
            seen.append(flat(asked) | flat(rest["real"]) | flat(rest["store"]))
            raise typer.Exit

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gdfq_export.pipeline.run", run)
            patch.setattr("gdfq_export.cli.image_folder.ImageFolder", lambda path, *rest: str(path))
            patch.chdir(work)
            assert main([*build(work), *words, "--out", "x.onnx", "--json"]) == 0
        return seen[0]

    def of(option: str, beside: list[str]) -> set[str]:
        before, after = asked(beside), asked([*beside, *words_for(option)])
        return {name for name, value in before.items() if after[name] != value}

    return of


def words_for(option: str) -> list[str]:
    return [option_name(option), *OTHER_VALUES[option]]


def test_every_option_has_its_place() -> None:
    command: Any = typer.main.get_command(app)
    names = {parameter.name for parameter in command.commands["quantize"].params}
    assert READERS.keys() <= OTHER_VALUES.keys()
    assert names - OTHER_VALUES.keys() - OF_THE_NETWORK - OF_THE_FILE - OF_THE_RUN == set()


@pytest.mark.parametrize("option", OTHER_VALUES)
def test_the_methods_in_the_table_are_those_that_read_the_option(
    option: str, reads: Callable[..., set[str]], changes: Callable[..., set[str]]
) -> None:
    readers = READERS.get(option, METHOD_NAMES)
    changed = changes(option, ["--method", readers[0]])
    assert changed
    assert {method for method in METHOD_NAMES if changed & reads(method)} == set(readers)


@pytest.mark.parametrize(
    ("method", "situation", "unread"),
    [("gdfq", "real_data", UNREAD_WITH_REAL_DATA), ("calibrate", "calibration_data", UNREAD_WITH_CALIBRATION_DATA)],
)
def test_what_real_images_replace_is_what_is_no_longer_read(
    method: str,
    situation: str,
    unread: tuple[str, ...],
    reads: Callable[..., set[str]],
    changes: Callable[..., set[str]],
) -> None:
    options = [option for option in OTHER_VALUES if method in READERS.get(option, METHOD_NAMES)]
    found = [option for option in options if not changes(option, ["--method", method]) & reads(method, situation)]
    assert set(found) == {option for option in unread if option in options}


def test_beside_a_budget_some_methods_do_not_read_the_preset(
    reads: Callable[..., set[str]], changes: Callable[..., set[str]]
) -> None:
    changed = changes("preset", ["--method", "gdfq", "--budget", "10m"])
    assert {method for method in METHOD_NAMES if changed & reads(method, "budget")} == set(PRESET_BESIDE_BUDGET)


def test_without_a_loss_of_the_generator_its_options_change_nothing() -> None:
    assert set(UNREAD_UNTRAINED) == {"generator_lr", "separate"}
    untrained = Ablations(generator_cross_entropy=False, generator_statistics=False)
    variants: list[dict[str, Any]] = [
        {"ablations": untrained},
        {"ablations": untrained, "generator_lr": 0.5},
        {"ablations": dataclasses.replace(untrained, alternating=False)},
    ]
    made = [outcome_of(settings("gdfq", **schedule), RealImages()) for schedule in variants]
    assert made[0].figures == made[1].figures == made[2].figures
    assert torch.equal(made[0].held_back, made[1].held_back)
    assert torch.equal(made[0].held_back, made[2].held_back)


@pytest.mark.parametrize("option", READERS)
def test_an_option_that_a_method_ignores_is_refused_with_the_methods_that_read_it(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in METHOD_NAMES:
        if method not in READERS[option]:
            words = ["quantize", "--model", "net.py:build", *SIZE, "--method", method, *words_for(option)]
            code, text = fails([*words, "--out", str(tmp_path / "x.onnx")], capsys)
            assert code == 2
            assert f"{option_name(option)} has no meaning for --method {method}" in text
            assert text.endswith(f"use it with {' or '.join(READERS[option])}")


@pytest.mark.parametrize(
    ("words", "config", "hint"),
    [
        ([], "student-lr = 1e-4", "--student-lr has no meaning for --method auto"),
        ([], "separate = false", "--separate has no meaning for --method auto"),
        (["--ranges", "learned"], "", "--ranges learned has no meaning for --method auto: use it with gdfq"),
        (["--budget", "9s", "--preset", "fast"], "", "--budget says how long --method auto takes, and --preset too"),
        (["--method", "gdfq", "--real-data", ".", "--generator-lr", "1e-3"], "", "--real-data replaces"),
        (["--method", "calibrate", "--calibration-data", ".", "--budget", "9s"], "", "does not need with"),
        (["--method", "calibrate", "--calibration-data", ".", "--reading", "code"], "", "does not need with"),
        (
            ["--method", "gdfq", "--no-generator-ce", "--no-generator-bns", "--separate"],
            "",
            "--separate has no meaning when --no-generator-ce and --no-generator-bns leave the generator untrained",
        ),
    ],
)
def test_what_would_change_nothing_is_refused_wherever_it_was_given(
    words: list[str], config: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(config)
    asked = ["quantize", "--model", "net.py:build", *SIZE, *words, "--config", str(tmp_path / "run.toml")]
    code, text = fails([*asked, "--out", str(tmp_path / "x.onnx")], capsys)
    assert (code, hint in text) == (2, True), text
