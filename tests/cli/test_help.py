"""Help: there for every command and option, and quick because nothing heavy is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import typer

from gdfq_export import __version__
from gdfq_export.cli import main
from gdfq_export.cli.app import app

HEAVY = ("torch", "onnx", "onnxruntime", "pytorchcv", "numpy", "PIL", "onnx_ir", "onnxsim", "safetensors")
COMMANDS = ("quantize", "verify", "inspect", "bench", "evaluate", "models")


def imported_after(words: list[str]) -> list[str]:
    """Heavy modules that are imported once `gdfq-export WORDS` has run."""
    code = (
        "import sys, json, io, contextlib\n"
        "from gdfq_export.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    code = main({words!r})\n"
        "assert code == 0, code\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout)
    return names


def registered() -> dict[str, Any]:
    """The commands by name."""
    group: Any = typer.main.get_command(app)
    commands: dict[str, Any] = group.commands
    return commands


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert imported_after(words) == []


def test_the_list_of_models_imports_nothing_heavy() -> None:
    assert imported_after(["models", "--json"]) == []


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gdfq-export {__version__}\n"


def test_the_program_has_the_commands_of_the_contract() -> None:
    assert set(COMMANDS) <= set(registered())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = registered()[name]
    assert command.help
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []
