"""`FILE.py:FACTORY`, and everything that can be wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gdfq_export.errors import InputFileError, UsageError
from gdfq_export.models.factories import is_factory_spec, module_from_factory

SOURCE = """
from dataclasses import dataclass
import torch
from neighbour import CHANNELS

@dataclass
class Config:
    channels: int = CHANNELS

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, Config().channels, 3))

def make():
    return Net()

def needs(argument):
    return Net()

def wrong():
    return 3

ready = Net()
NUMBER = 4
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("CHANNELS = 5\n")
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path / "net.py"


@pytest.mark.parametrize("name", ["make", "Net", "ready"])
def test_a_function_a_class_and_a_network_all_serve_as_factory(source: Path, name: str) -> None:
    module = module_from_factory(f"{source}:{name}", seed=0)
    assert module[0].out_channels == 5


def test_the_path_of_imports_is_restored(source: Path) -> None:
    before = list(sys.path)
    module_from_factory(f"{source}:make", seed=0)
    assert sys.path == before


def test_the_seed_decides_the_weights(source: Path) -> None:
    first, second, third = (module_from_factory(f"{source}:make", seed)[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist"):
        module_from_factory(f"{tmp_path}/none.py:make", seed=0)


def test_a_missing_factory_is_answered_with_what_the_file_has(source: Path) -> None:
    with pytest.raises(UsageError, match=r"has no mak: it has Config, Net, make, needs, wrong, ready$"):
        module_from_factory(f"{source}:mak", seed=0)


def test_a_file_without_a_factory_asks_for_one(source: Path) -> None:
    with pytest.raises(UsageError, match=r"name the function that makes the network, .*net\.py:FACTORY: it has"):
        module_from_factory(str(source), seed=0)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("wrong", UsageError, r"wrong\(\) of .* returns a int, not a torch.nn.Module"),
        ("NUMBER", UsageError, "NUMBER of .* is a int, not a function"),
        ("needs", InputFileError, r"needs\(\) of .*, called without arguments, failed: TypeError"),
    ],
)
def test_a_factory_that_makes_no_network_is_one_sentence(
    source: Path, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        module_from_factory(f"{source}:{name}", seed=0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\nx = (", r"SyntaxError at bad\.py:2: "),
        ("import torch\n\nraise OSError('disk')", r"OSError at bad\.py:3: disk$"),
        ("import sys\nsys.exit()", r"it ends the program with sys\.exit\(\) at bad\.py:2$"),
        ("raise SystemExit('enough')", r"it ends the program with sys\.exit\('enough'\) at bad\.py:1$"),
        ("from helper import x", r"ZeroDivisionError at helper\.py:2: division by zero$"),
    ],
)
def test_a_file_that_cannot_be_imported_names_the_line(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    (tmp_path / "helper.py").write_text("y = 0\nx = 1 / y\n")
    with pytest.raises(InputFileError, match=f"bad.py cannot be imported: .*{message}"):
        module_from_factory(f"{tmp_path}/bad.py:make", seed=0)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("sys.exit(0)", r"it ends the program with sys\.exit\(0\) at exits\.py:3$"),
        ("raise GeneratorExit", r"GeneratorExit at exits\.py:3$"),
        ("torch.zeros(2, 3) @ torch.zeros(2, 3)", r"RuntimeError at exits\.py:3: mat1 and mat2"),
    ],
)
def test_a_factory_that_ends_the_program_is_one_sentence(tmp_path: Path, raised: str, message: str) -> None:
    (tmp_path / "exits.py").write_text(f"import sys, torch\ndef make():\n    {raised}\n")
    with pytest.raises(InputFileError, match=rf"make\(\) of .*, called without arguments, failed: {message}"):
        module_from_factory(f"{tmp_path}/exits.py:make", seed=0)


def test_ctrl_c_in_a_factory_stays_an_interruption(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        module_from_factory(f"{tmp_path}/net.py:make", seed=0)


def test_what_a_file_sets_for_all_of_pytorch_is_taken_back(tmp_path: Path) -> None:
    code = "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\n"
    (tmp_path / "net.py").write_text(code + "torch.set_default_device('meta')\nmake = torch.nn.ReLU\n")
    module_from_factory(f"{tmp_path}/net.py:make", seed=0)
    after = torch.zeros(1)
    assert (after.dtype, after.device.type, torch.is_grad_enabled()) == (torch.float32, "cpu", True)


def test_specs_are_told_apart_from_names() -> None:
    assert is_factory_spec("dir/net.py:make")
    assert is_factory_spec("net.py")
    assert not is_factory_spec("resnet20")
    assert not is_factory_spec("net.pt2")
