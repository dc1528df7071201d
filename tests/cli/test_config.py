"""`--config FILE.toml`: every option as the command line has it, lists of numbers, and paths beside the file."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from user_folder import GOOD, HEAD, fails

from gdfq_export.cli import main
from gdfq_export.cli.app import app
from gdfq_export.cli.config import Option, options_of, read_config
from gdfq_export.cli.quantize import quantize
from gdfq_export.errors import InputFileError, UsageError
from gdfq_export.models.table import all_models

COMMAND: Any = typer.main.get_command(app)
OPTIONS: Mapping[str, Option] = options_of(quantize, COMMAND.commands["quantize"].params)
SAMPLES: Mapping[type, Any] = {bool: True, int: 3, float: 0.5, str: "a text", Path: "sub/file"}


def config(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def read(folder: Path, text: str) -> dict[str, Any]:
    return read_config(config(folder, text), OPTIONS)


def parsed(words: list[str]) -> dict[str, Any]:
    """What the function behind `quantize` would get."""
    params: dict[str, Any] = COMMAND.commands["quantize"].make_context("quantize", words).params
    return {name: value for name, value in params.items() if name != "config"}


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "config"])
def test_every_option_in_a_config_is_what_it_is_on_the_command_line(name: str, tmp_path: Path) -> None:
    option = OPTIONS[name]
    sample = SAMPLES[option.kind]
    text = f"{name} = {json.dumps([sample, sample] if option.several else sample)}"
    needed = [word for each in ("model", "out") if each != name for word in (f"--{each}", "x")]
    said = str(tmp_path / sample) if option.kind is Path else str(sample)
    words = [f"--{name}"] if option.kind is bool else [f"--{name}", said] * (2 if option.several else 1)
    assert parsed([*needed, "--config", str(config(tmp_path, text))]) == parsed([*needed, *words])


def test_the_options_are_those_of_the_function() -> None:
    parameters = inspect.signature(quantize).parameters.keys() - {"context"}
    assert {option.parameter for option in OPTIONS.values()} == parameters


def test_underscores_are_as_good_as_dashes(tmp_path: Path) -> None:
    assert read(tmp_path, 'weight_bits = 4\nact-bits = 5\nmethod = "calibrate"') == {
        **{"weight_bits": 4, "act_bits": 5},
        "method": "calibrate",
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("std = [0.25, 0.25, 0.5]", {"std": "0.25,0.25,0.5"}),
        ("mean = [0, 1e-3]", {"mean": "0,0.001"}),
        ("mean = 0.5", {"mean": "0.5"}),
        ('mean = "0.1,0.2,0.3"', {"mean": "0.1,0.2,0.3"}),
        ("input-size = [3, 32, 16]", {"input_size": "3x32x16"}),
        ("budget = 90", {"budget": "90"}),
        ('without = "pad_input"', {"without": ["pad_input"]}),
        ('without = ["pad_input", "pool_as_conv"]', {"without": ["pad_input", "pool_as_conv"]}),
    ],
)
def test_lists_and_numbers_are_what_they_look_like(text: str, found: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, text) == found


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = 'out = "o.onnx"\nweights = "../w.pt"\nreport = "/r.html"\nmodel = "nets/own.py:build"'
    assert read(tmp_path, text) == {
        "out": str(tmp_path / "o.onnx"),
        "weights": str(tmp_path / ".." / "w.pt"),
        "report": "/r.html",
        "model": str(tmp_path / "nets" / "own.py:build"),
    }


def test_the_name_of_a_known_network_is_no_path(tmp_path: Path) -> None:
    assert read(tmp_path, 'model = "mobilenetv2"') == {"model": "mobilenetv2"}
    assert not [name for name in all_models() if set("./\\") & set(name)]


def test_a_run_finds_what_stands_beside_its_config_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "net.py").write_text(HEAD + GOOD)
    text = 'model = "net.py:build"\nout = "x.onnx"\ninput-size = [3, 16, 16]\nmean = 0.5\nstd = [0.25, 0.25, 0.25]\n'
    config(tmp_path / "set", text + "dry-run = true\njson = true\n")
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", "--config", "set/run.toml"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weigth-bits = 4", "sets 'weigth-bits', which is no option of quantize"),
        ('config = "other.toml"', "names another config: write its options into this one"),
        ('bits = "8"', 'bits takes a whole number, not "8"'),
        ("bits = true", "bits takes a whole number, not true"),
        ("bits = 8.0", "bits takes a whole number, not 8.0"),
        ('student-lr = "1e-4"', 'student-lr takes a number, not "1e-4"'),
        ("separate = 1", "separate takes true or false, not 1"),
        ('force = "yes"', 'force takes true or false, not "yes"'),
        ("std = []", "std takes a text, a number or a list of numbers, not []"),
        ('std = [0.5, "a"]', 'std takes a text, a number or a list of numbers, not [0.5, "a"]'),
        ("std = [[0.5]]", "std takes a text, a number or a list of numbers, not [[0.5]]"),
        ("budget = true", "budget takes a text, a number or a list of numbers, not true"),
        ("budget = 2026-01-01", 'budget takes a text, a number or a list of numbers, not "2026-01-01"'),
        ("out = 3", "out takes a path in quotes, not 3"),
        ('report = ""', 'report takes a path in quotes, not ""'),
        ("without = [true]", "without takes a text, a number or a list of numbers, not true"),
        ("[bits]\nweight = 4", 'bits takes a whole number, not {"weight": 4}'),
    ],
)
def test_what_no_option_takes_is_a_usage_error_with_its_name(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    code, sentence = fails(["quantize", "--config", str(tmp_path / "run.toml")], capsys)
    assert (code, message in sentence) == (2, True)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        read_config(tmp_path / "none.toml", OPTIONS)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="not valid TOML"):
        read(tmp_path, "bits = ")


def test_a_config_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputFileError, match="not valid TOML"):
        read_config(tmp_path / "run.toml", OPTIONS)
