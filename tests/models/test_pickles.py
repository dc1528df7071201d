"""`--allow-pickle`: whole pickled modules, and what the messages say where one is not read."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gdfq_export.errors import GdfqError, InputFileError, UnsupportedModelError, UsageError, WeightsError
from gdfq_export.models.pickles import load_pickle
from gdfq_export.models.sources import LoadedModel, load_model
from gdfq_export.models.state import read_state

SIZE = (3, 8, 8)
SOURCE = """
import torch
from torch import nn

class Own(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
"""


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)
    ).eval()


def load(path: Path, **options: object) -> LoadedModel:
    return load_model(str(path), input_size=SIZE, mean=(0.5,), std=(0.5,), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickled_module_is_the_network_and_the_danger_is_said(
    wrapped: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = network()
    torch.save({"epoch": 1, "model": module} if wrapped else module, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt", allow_pickle=True)
    x = torch.rand(2, *SIZE)
    assert isinstance(loaded.module, nn.Module)
    assert torch.equal(loaded.module(x), module(x))
    assert (loaded.name, loaded.weights_source) == ("net", "pickle")
    assert loaded.weights_sha256 is not None
    assert "running code from the file" in caplog.text


def test_a_pickled_module_as_weights_gives_its_state_dict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = network()
    torch.save(module, tmp_path / "net.pt")
    state = read_state(tmp_path / "net.pt", allow_pickle=True)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert "running code from the file" in caplog.text


def test_a_checkpoint_with_other_objects_beside_its_tensors_is_read_too(tmp_path: Path) -> None:
    torch.save({"state_dict": network().state_dict(), "where": tmp_path}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"\(pathlib.*--allow-pickle where you trust the file"):
        read_state(tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt", allow_pickle=True).keys() == network().state_dict().keys()


def test_files_without_other_objects_need_no_permission_and_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        read_state(tmp_path / "w.pt", allow_pickle=True)
    assert not caplog.records


def saved_elsewhere(folder: Path, script: str) -> Path:
    """A module pickled by another process, whose classes are not importable here."""
    (folder / "code").mkdir()
    (folder / "code" / "own_net.py").write_text(SOURCE)
    (folder / "code" / "script.py").write_text(script)
    subprocess.run([sys.executable, "script.py", str(folder / "net.pt")], cwd=folder / "code", check=True)
    return folder / "net.pt"


def test_a_class_that_cannot_be_imported_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = saved_elsewhere(tmp_path, "import sys, torch\nfrom own_net import Own\ntorch.save(Own(), sys.argv[1])\n")
    with pytest.raises(InputFileError, match=r"module own_net, which cannot .* PYTHONPATH .* FILE\.py:FACTORY"):
        load(path, allow_pickle=True)
    path.rename(tmp_path / "code" / "net.pt")  # beside its class, it is found
    assert load(tmp_path / "code" / "net.pt", allow_pickle=True).name == "net"
    sys.modules.pop("own_net")


def test_a_class_of_the_script_that_saved_it_is_told_apart(tmp_path: Path) -> None:
    path = saved_elsewhere(tmp_path, SOURCE + "import sys\ntorch.save(Own(), sys.argv[1])\n")
    with pytest.raises(InputFileError, match=r"defined in the script that saved it .* FILE\.py:FACTORY"):
        load_pickle(path)


def write(what: str, path: Path) -> None:
    module = network()
    if what == "torchscript":
        torch.jit.script(module).save(str(path))
    elif what == "garbage":
        path.write_text("no network")
    else:
        torch.save(module if what == "module" else module.state_dict(), path)


@pytest.mark.parametrize("ending", ["pt", "pth", "pt2", "model"])
@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("torchscript", UnsupportedModelError, r"TorchScript archive.*FILE\.py:FACTORY.*state_dict\(\).*--weights"),
        ("module", UsageError, r"\(torch\.nn\S+Sequential\).*FILE\.py:FACTORY.*state_dict\(\).*--allow-pickle"),
        ("state dict", UsageError, r"--model NAME --weights \S*net\.\w+, or as --model FILE\.py:FACTORY --weights"),
        ("garbage", InputFileError, "damaged"),
    ],
)
def test_a_file_that_is_no_network_leads_to_what_works(
    ending: str, what: str, error: type[GdfqError], message: str, tmp_path: Path
) -> None:
    path = tmp_path / f"net.{ending}"
    write(what, path)
    with pytest.raises(error, match=message):
        load(path)


def test_torchscript_as_weights_leads_to_what_works_and_it_does(tmp_path: Path) -> None:
    write("torchscript", tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="TorchScript archive") as caught:
        read_state(tmp_path / "net.pt")
    command = str(caught.value).partition("saved by ")[2].partition(", as --weights")[0]
    exec(command.replace("'weights.pt'", repr(str(tmp_path / "weights.pt"))), {"torch": torch})
    assert read_state(tmp_path / "weights.pt").keys() == network().state_dict().keys()


def test_a_program_is_known_by_its_bytes(tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(
        torch.export.export(network(), (torch.zeros(2, *SIZE),), dynamic_shapes=shapes), tmp_path / "a.pt2"
    )
    (tmp_path / "a.pt2").rename(tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").weights_source == "program"


def test_a_permission_that_nothing_needs_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--allow-pickle is for a file"):
        load_model("resnet20_cifar10", allow_pickle=True)
