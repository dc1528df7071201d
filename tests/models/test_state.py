"""Reading state dicts from files, and fitting them into networks."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gdfq_export.errors import WeightsError
from gdfq_export.models.state import fit_state, read_state, sha256_of


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def assert_same(state: dict[str, torch.Tensor], network: nn.Module) -> None:
    wanted = network.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_safetensors_are_read(tmp_path: Path) -> None:
    network = small_network()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    assert_same(read_state(tmp_path / "w.safetensors"), network)


def test_safetensors_are_known_by_content_too(tmp_path: Path) -> None:
    network = small_network()
    save_file(network.state_dict(), tmp_path / "w.bin")
    assert_same(read_state(tmp_path / "w.bin"), network)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_formats_are_read(tmp_path: Path, zipped: bool) -> None:
    network = small_network()
    torch.save(network.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert_same(read_state(tmp_path / "w.pth"), network)


def test_a_published_file_is_read_still_zipped(tmp_path: Path) -> None:
    network = small_network()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth.zip", "w") as archive:
        archive.write(tmp_path / "w.pth", "w.pth")
    assert_same(read_state(tmp_path / "w.pth.zip"), network)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, key: str) -> None:
    network = small_network()
    torch.save({key: network.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    assert_same(read_state(tmp_path / "w.pth"), network)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    source, target = small_network(), small_network()
    fit_state(target, {prefix + key: value for key, value in source.state_dict().items()}, "w", ignore_extra=False)
    assert_same(target.state_dict(), source)


def test_the_counter_of_batches_may_be_missing() -> None:
    source, target = small_network(), small_network()
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    fit_state(target, state, "w", ignore_extra=False)
    assert_same(target.state_dict(), source)


def test_half_precision_weights_are_widened() -> None:
    target = small_network()
    fit_state(target, {key: value.half() for key, value in target.state_dict().items()}, "w", ignore_extra=False)
    assert target[0].weight.dtype == torch.float32


def test_weights_of_another_network_name_the_first_keys_that_do_not_fit() -> None:
    state = dict(nn.Sequential(nn.Conv2d(3, 5, 3)).state_dict())
    state["head.bias"] = torch.zeros(2)
    expected = (
        r"in w\.pth belong to another network: it lacks 1\.weight, 1\.bias and 2 more, has unknown head\.bias, "
        r"disagrees in shape at 0\.weight \(5x3x3x3, not 4x3x3x3\), 0\.bias \(5, not 4\)$"
    )
    with pytest.raises(WeightsError, match=expected):
        fit_state(small_network(), state, "w.pth", ignore_extra=False)


def test_unknown_tensors_of_published_files_are_dropped() -> None:
    source, target = small_network(), small_network()
    fit_state(target, {**source.state_dict(), "aux.weight": torch.zeros(1)}, "w", ignore_extra=True)
    assert_same(target.state_dict(), source)


def test_a_network_is_left_alone_when_the_weights_do_not_fit() -> None:
    target = small_network()
    before = target[0].weight.clone()
    with pytest.raises(WeightsError):
        fit_state(target, {"0.weight": torch.zeros(4, 3, 3, 3)}, "w", ignore_extra=False)
    assert torch.equal(target[0].weight, before)


def test_weights_that_are_not_finite_are_refused() -> None:
    state = small_network().state_dict()
    state["0.bias"][1] = float("nan")
    with pytest.raises(WeightsError, match=r"0\.bias holds values that are not finite"):
        fit_state(small_network(), state, "w", ignore_extra=False)


def test_a_negative_variance_is_refused() -> None:
    state = small_network().state_dict()
    state["1.running_var"][1] = -0.5
    with pytest.raises(WeightsError, match=r"1\.running_var holds negative values"):
        fit_state(small_network(), state, "w", ignore_extra=False)


def test_quantized_weights_are_refused() -> None:
    state = small_network().state_dict()
    for codes in (torch.quantize_per_tensor(state["0.weight"], 0.01, 0, torch.qint8), state["0.weight"].char()):
        with pytest.raises(WeightsError, match=rf"already quantized \(0\.weight is {codes.dtype}\): pass those of"):
            fit_state(small_network(), {**state, "0.weight": codes}, "w", ignore_extra=False)


def test_a_pickle_that_could_run_code_is_refused_and_explained(tmp_path: Path) -> None:
    torch.save(small_network(), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"could run code and are not loaded: save the network's state_dict\(\)"):
        read_state(tmp_path / "net.pth")


def test_a_torchscript_archive_is_recognised(tmp_path: Path) -> None:
    torch.jit.script(small_network()).save(str(tmp_path / "net.pt"))
    with pytest.raises(WeightsError, match="is a TorchScript archive"):
        read_state(tmp_path / "net.pt")


def test_an_exported_program_is_sent_to_the_right_option(tmp_path: Path) -> None:
    program = torch.export.export(nn.ReLU(), (torch.zeros(1, 3, 4, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(WeightsError, match=r"exported program: pass it as --model \S*net\.pt2"):
        read_state(tmp_path / "net.pt2")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.97])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, name: str, kept: float) -> None:
    state = small_network().state_dict()
    path = tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(WeightsError, match=r"w\.\w+ is damaged") as caught:
        read_state(path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("content", "message"), [([1, 2], "no state dict"), ({"epoch": 3}, "no state dict"), (torch.ones(2), "no state")]
)
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        read_state(tmp_path / "w.pth")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_state(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_state(tmp_path)


def test_the_checksum_is_of_the_bytes_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    assert sha256_of(tmp_path / "w") == hashlib.sha256(b"weights").hexdigest()
