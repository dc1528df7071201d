"""What the wheel holds, and what its parts import."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("gdfq_export", "models", "runtime_checks", "pyproject.toml", "README.md", "LICENSE")
RUNTIME_MAY_IMPORT = {"numpy", "onnx", "onnxruntime", "PIL", "google", "gdfq_export"}
RUNTIME_MAY_IMPORT |= {"openvino"}  # optional, one of the other runtimes that a file is compared on


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy, so that nothing is left behind in the repository."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def test_every_source_file_is_installed_inside_the_package(wheel: set[str]) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gdfq_export").rglob("*.py")}
    for name in ("models", "runtime_checks"):
        expected |= {f"gdfq_export/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / name).rglob("*.py")}
    assert expected <= wheel


def test_types_the_table_and_the_embedded_weights_are_installed(wheel: set[str]) -> None:
    assert "gdfq_export/py.typed" in wheel
    assert "gdfq_export/models/classifiers.tsv" in wheel
    assert "gdfq_export/runtime_checks/runtimes/ort_web.cjs" in wheel
    for suffix in ("safetensors", "md"):  # the weights and their model card
        assert f"gdfq_export/models/weights/resnet20_cifar10.{suffix}" in wheel


def test_nothing_stands_beside_the_package(wheel: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"gdfq_export"}


def test_the_licence_and_the_program_are_declared(wheel: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)


def imported_modules(path: Path) -> set[str]:
    """Full names of everything that a file imports, anywhere in it, `importlib.import_module("...")` included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.add(ast.literal_eval(node.args[0]))
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "runtime_checks").rglob("*.py")), ids=lambda path: path.name)
def test_the_checks_import_neither_torch_nor_the_exporter(path: Path) -> None:
    for module in imported_modules(path):
        top = module.split(".")[0]
        assert top in RUNTIME_MAY_IMPORT or top in sys.stdlib_module_names, module
        assert top != "gdfq_export" or module.startswith("gdfq_export.runtime_checks"), module


def test_the_import_scan_sees_what_is_hidden_in_functions(tmp_path: Path) -> None:
    code = 'import os.path\ndef f():\n    from torch import nn\n    importlib.import_module("pytorchcv")\n'
    (tmp_path / "x.py").write_text(code)
    assert imported_modules(tmp_path / "x.py") == {"os.path", "torch", "pytorchcv"}


def test_running_the_checks_loads_neither_torch_nor_the_exporter() -> None:
    code = (
        "import sys, pkgutil, importlib, gdfq_export.runtime_checks as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "ours = [name for name in sys.modules if name.startswith('gdfq_export.')]\n"
        "print([name for name in ours if not name.startswith('gdfq_export.runtime_checks')], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[] False", done.stderr
