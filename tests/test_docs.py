"""Every command that the documentation shows is run, in the order in which it stands there."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from pytorchcv.model_provider import get_model
from safetensors.torch import save_file

from gdfq_export.cli import main
from gdfq_export.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS_NETWORK = "mobilenetv2"  # run with a server on this machine in tests/cli/test_quantize_download.py
WITHOUT_COMMANDS = {"how-it-works.md", "paper-map.md"}  # pages that explain, and measure nothing
STARTS = re.compile(r"(python (benchmarks|examples)/|gdfq-export |\./scripts/)")
OWN_MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )
"""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[str]:
    """Lines of console blocks."""
    return [line for block in blocks(page, "console") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documentation takes for granted: a user's model, weights, program and images."""
    folder = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    state = get_model("resnet20_cifar100").state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "my_weights.safetensors")
    (folder / "my_model.py").write_text(OWN_MODEL)
    scope: dict[str, object] = {}
    exec(OWN_MODEL, scope)
    module = scope["build"]().eval()  # type: ignore[operator]
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "my_model.safetensors")
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "program.pt2")
    for index in range(10):
        (folder / "images" / f"{index}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (20 * index, 100, 50)).save(folder / "images" / f"{index}" / "a.png")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_succeed(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    for line in commands(page):
        words = shlex.split(line)
        if words[0] != "gdfq-export" or NEEDS_NETWORK in line or "model.onnx" in words:
            continue
        assert main([*words[1:], *(["--force"] if words[1] == "quantize" else [])]) == 0, line


def shown(page: Path) -> list[str]:
    """All commands of a page, those that nothing runs too: in its text, and in blocks of other languages."""
    text = page.read_text()
    blocks = re.findall(r"```(?:console|text|sh)\n(.*?)```", text, re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [" ".join(command.split()) for command in (*lines, *spans) if STARTS.match(command)]


@cache
def help_of(script: str) -> str:
    """What a benchmark says of its options."""
    done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_scripts_benchmarks_and_options_of_a_page_exist(page: Path) -> None:
    tool: Any = typer.main.get_command(app)
    for line in shown(page):
        words = [word.strip("[],;") for word in shlex.split(line)]
        options = [
            word.split("=")[0] for word in words if word.startswith("--") and " " not in word
        ]  # "--a --b": a value
        if words[0].startswith("./"):
            assert (ROOT / words[0]).is_file(), line
        elif words[0] == "python":
            for option in options:
                assert option in help_of(words[1]), f"{words[1]} has no {option}"
        elif len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in tool.commands, line
            known = {name for parameter in tool.commands[words[1]].params for name in parameter.opts}
            assert set(options) <= known | {"--help", "--debug"}, line


def test_every_page_that_shows_results_shows_the_commands_that_made_them() -> None:
    assert {page.name for page in PAGES if not shown(page)} <= WITHOUT_COMMANDS
    assert {"README.md", "accuracy.md", "gdfq.md"} <= {page.name for page in PAGES if len(commands(page)) > 3}


def test_the_python_example_runs(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(workspace)
    (example,) = blocks(ROOT / "README.md", "python")
    exec(example, {})
    assert "teacher_agreement" in capsys.readouterr().out


def test_the_config_of_the_readme_is_taken(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(ROOT / "README.md", "toml")
    (workspace / "run.toml").write_text(example)
    assert main(["quantize", "--config", str(workspace / "run.toml"), "--dry-run", "--json"]) == 0
    assert '"plan"' in capsys.readouterr().out


def test_the_readme_mentions_every_command_and_the_docs_link_to_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for name in ("quantize", "verify", "inspect", "bench", "evaluate", "models"):
        assert f"| `{name}` |" in text
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def rows(page: Path) -> list[list[str]]:
    """The cells of every row of the page's tables, without headings."""
    lines = page.read_text().splitlines()
    rules = {index for index, line in enumerate(lines) if re.fullmatch(r"\|(-+\|)+", line)}
    body = [line for index, line in enumerate(lines) if line.startswith("|") and not {index, index + 1} & rules]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body]


def test_every_function_and_test_that_the_paper_map_names_exists() -> None:
    found = rows(ROOT / "docs" / "paper-map.md")
    assert {"eq. 5", "Algorithm 1", "section on distilled data", "Nagel et al."} <= {
        part for paper, *_ in found for part in (paper, paper.split(",")[0])
    }
    for paper, functions, tests in found:
        names = re.findall(r"`(\w+\.[\w.]+)[`(]", functions)
        files = re.findall(r"`(\w+/[\w/.]+)`", functions)
        assert names or files, paper
        for name in names:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(f"gdfq_export.{module}"), attribute), name
        checked = re.findall(r"`([^`]+)`", tests)
        assert checked, paper
        for file in (*files, *checked):
            assert (ROOT / file).is_file(), file
