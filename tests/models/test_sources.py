"""From what the user typed to a loaded network."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gdfq_export.errors import InputFileError, UnknownModelError, UnsupportedModelError, UsageError, WeightsError
from gdfq_export.models import download, sources
from gdfq_export.models.architectures import build_architecture
from gdfq_export.models.factories import module_from_factory
from gdfq_export.models.sources import load_model
from gdfq_export.models.state import sha256_of
from gdfq_export.models.table import find_model

FACTORY = """
import torch
def make():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1),
                               torch.nn.Flatten(), torch.nn.Linear(4, 6))
def crop():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
"""


@pytest.fixture(scope="module")
def resnet20_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = find_model("resnet20")
    path = tmp_path_factory.mktemp("weights") / "resnet20_cifar10.safetensors"
    save_file(build_architecture(entry, entry.input_size, 10, seed=7).state_dict(), path)
    return path


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path}/net.py:make"


def state_of(spec: str, **options: object) -> dict[str, torch.Tensor]:
    module = load_model(spec, **options).module  # type: ignore[arg-type]
    assert isinstance(module, torch.nn.Module)
    return module.state_dict()


def test_a_weights_file_fills_a_known_network(resnet20_weights: Path) -> None:
    loaded = load_model("resnet20", weights=resnet20_weights)
    entry = find_model("resnet20")
    expected = build_architecture(entry, entry.input_size, 10, seed=7)
    assert isinstance(loaded.module, torch.nn.Module)
    assert torch.equal(loaded.module.output.weight, expected.output.weight)
    assert (loaded.name, loaded.input_size, loaded.num_classes, loaded.resize) == ("resnet20", (3, 32, 32), 10, None)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (loaded.weights_source, loaded.weights_sha256) == ("file", sha256_of(resnet20_weights))


def test_a_loaded_network_is_in_eval_mode_and_wants_no_gradients(resnet20_weights: Path) -> None:
    module = load_model("resnet20", weights=resnet20_weights).module
    assert isinstance(module, torch.nn.Module)
    assert not any(layer.training for layer in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_embedded_network_comes_from_the_package(monkeypatch: pytest.MonkeyPatch, resnet20_weights: Path) -> None:
    monkeypatch.setattr(sources, "EMBEDDED_FOLDER", resnet20_weights.parent)
    loaded = load_model("resnet20_cifar10")
    assert (loaded.weights_source, loaded.weights_sha256) == ("embedded", sha256_of(resnet20_weights))


def test_an_installation_without_the_embedded_weights_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(WeightsError, match="lacks the embedded weights"):
        load_model("resnet20")


def test_published_weights_are_downloaded_and_their_extra_tensors_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = find_model("squeezenet")
    state = build_architecture(entry, entry.input_size, 1000, seed=7).state_dict()
    torch.save({**state, "only.for.training": torch.zeros(1)}, tmp_path / "published.pth")
    monkeypatch.setattr(sources, "download_weights", lambda entry: tmp_path / "published.pth")
    loaded = load_model("squeezenet")
    assert loaded.weights_source == "pytorchcv"
    assert loaded.weights_sha256 == sha256_of(tmp_path / "published.pth")


def test_without_pretrained_weights_the_seed_decides_and_statistics_are_set() -> None:
    first, second, third = (state_of("resnet20", pretrained=False, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["output.weight"], third["output.weight"])
    assert first["features.init_block.bn.running_mean"].any()


def test_random_weights_are_named_as_such_and_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_fetch", None)
    loaded = load_model("fdmobilenet_wd4", pretrained=False)
    assert (loaded.weights_source, loaded.weights_sha256) == ("random", None)


def test_a_factory_with_its_own_weights_is_taken_with_assumptions_said(
    factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_model(factory)
    assert (loaded.name, loaded.weights_source, loaded.input_size) == ("make", "factory", (3, 224, 224))
    assert "assuming input 3x224x224 (--input-size) and ImageNet's mean and std" in caplog.text
    assert "looks untrained" in caplog.text


def test_a_factory_takes_weights_and_its_options_silence_the_assumptions(
    factory: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_of(factory, pretrained=False, input_size=(3, 176, 176))
    save_file(state, tmp_path / "w.safetensors")
    caplog.clear()
    loaded = load_model(
        factory, weights=tmp_path / "w.safetensors", input_size=(3, 176, 176), mean=(0.5,), std=(0.25,), num_classes=6
    )
    assert (loaded.mean, loaded.std, loaded.resize) == ((0.5,) * 3, (0.25,) * 3, 201)
    assert (loaded.num_classes, loaded.weights_source) == (6, "file")
    assert not caplog.records


def test_a_program_brings_its_size_its_weights_and_its_classes(factory: str, tmp_path: Path) -> None:
    module = load_model(factory).module
    assert isinstance(module, torch.nn.Module)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3, 40, 40),)), tmp_path / "net.pt2")
    loaded = load_model(str(tmp_path / "net.pt2"))
    assert isinstance(loaded.module, torch.export.ExportedProgram)
    assert (loaded.name, loaded.input_size, loaded.num_classes, loaded.resize) == ("net", (3, 40, 40), 6, None)
    assert (loaded.weights_source, loaded.weights_sha256) == ("program", sha256_of(tmp_path / "net.pt2"))
    with pytest.raises(UsageError, match="exported for images of 3x40x40, not 3x32x32"):
        load_model(str(tmp_path / "net.pt2"), input_size=(3, 32, 32))


def test_a_size_that_the_network_cannot_take_is_found_at_once() -> None:
    with pytest.raises(UsageError, match=r"fdmobilenet_wd4 cannot run an image of 3x96x96 \(see --input-size\)"):
        load_model("fdmobilenet_wd4", pretrained=False, input_size=(3, 96, 96))


def test_a_size_that_a_factory_cannot_take_is_found_at_once(factory: str) -> None:
    with pytest.raises(UsageError, match=r"cannot run an image of 3x224x224 \(see --input-size\)"):
        load_model(factory.replace("make", "crop"))


def broken(tmp_path: Path, line: str) -> str:
    (tmp_path / "broken.py").write_text(FACTORY + f"\ndef broken():\n    net = make()\n    {line}\n    return net\n")
    return f"{tmp_path}/broken.py:broken"


SIZED = {"input_size": (3, 8, 8), "mean": (0.5,), "std": (0.5,)}
BROKEN = [
    ("net[0].weight.data[1] = float('nan')", r"0\.weight holds values that are not finite"),
    ("net[1].running_mean[1] = float('inf')", r"1\.running_mean holds values that are not finite"),
    ("net[1].running_var[2] = -1", r"1\.running_var holds negative values"),
    ("net[4].bias.data[0] = float('-inf')", r"4\.bias holds values that are not finite"),
    ("net.register_buffer('extra', torch.full((2,), float('nan')), persistent=False)", "extra holds values that are"),
]


@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_values_that_no_network_has_are_found_in_what_a_factory_makes(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(broken(tmp_path, line), **SIZED)  # type: ignore[arg-type]


@pytest.mark.parametrize(("line", "message"), BROKEN[:4])
def test_values_that_no_network_has_are_found_in_files(line: str, message: str, tmp_path: Path) -> None:
    module = module_from_factory(broken(tmp_path, line), seed=0).eval()
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    torch.save(module, tmp_path / "net.pt")
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(
        torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes), tmp_path / "net.pt2"
    )
    good = broken(tmp_path, "pass")
    for spec, options in (
        (good, {"weights": tmp_path / "w.safetensors"}),
        (f"{tmp_path}/net.pt", {"allow_pickle": True}),
        (f"{tmp_path}/net.pt2", {}),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            load_model(spec, **SIZED, **options)  # type: ignore[arg-type]
        assert caught.value.exit_code == 4


def test_a_network_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"0\.weight has no values .*meta device"):
        load_model(broken(tmp_path, "net = net.to('meta')"), **SIZED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ("resnet21", {}, UnknownModelError, "unknown model 'resnet21'"),
        ("weights.pth", {}, UsageError, "pass it as --model NAME --weights weights.pth"),
        ("none.pt2", {}, InputFileError, "none.pt2 does not exist"),
        ("none.pt2", {"pretrained": False}, UsageError, "carries its weights"),
        ("resnet20", {"weights": Path("none.pth")}, WeightsError, "none.pth does not exist"),
        ("resnet20", {"weights": Path("w"), "pretrained": False}, UsageError, "exclude each other"),
        (
            "resnet20",
            {"pretrained": False, "mean": (0.1, 0.2), "std": (1.0,)},
            UsageError,
            "--mean has 2 values .* 3 channels",
        ),
        ("resnet20", {"pretrained": False, "mean": (0.5,)}, UsageError, "--mean without --std"),
        (
            "resnet20",
            {"pretrained": False, "input_size": (1, 32, 32)},
            UsageError,
            "1 channel, .* give --mean and --std",
        ),
        ("resnet20", {"input_size": (3, 0, 32)}, UsageError, "all positive"),
        ("resnet20", {"num_classes": 0}, UsageError, "number of classes must be positive"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    spec: str, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_model(spec, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(resnet20_weights: Path) -> None:
    with pytest.raises(WeightsError, match="belong to another network"):
        load_model("resnet18", weights=resnet20_weights)


def test_an_input_that_is_no_image_keeps_its_range(factory: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_model(factory, input_size=(3, 16, 16), input_range=(-2.0, 2.0), labels=("a", "b"))
    assert (loaded.mean, loaded.std, loaded.input_range) == ((0.0,) * 3, (1.0,) * 3, (-2.0, 2.0))
    assert loaded.labels == ("a", "b")
    assert not loaded.is_image
    assert "ImageNet" not in caplog.text
    assert load_model(factory, input_size=(3, 16, 16)).is_image
