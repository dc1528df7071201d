"""The recipe from a loaded network to its files, on small networks and few steps."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from network_parts import Net, pooled, randomize
from stages import folded, images, network, run_onnx
from torch import nn
from torch.nn import functional as F

from gdfq_export.errors import GdfqError, InputFileError, UnsupportedModelError, UsageError
from gdfq_export.files import companions_of
from gdfq_export.models.sources import LoadedModel
from gdfq_export.passes import pad_input
from gdfq_export.pipeline import accepted_range, against_teacher, prepare, quantize_model, run, run_facts, write_files
from gdfq_export.plan import BitWidths
from gdfq_export.program import FloatProgram
from gdfq_export.progress import silent
from gdfq_export.settings import Schedule, Settings

SCHEDULE = Schedule(batch=8, warmup_steps=2, steps=2, steps_per_epoch=2, calibration_images=16, reading="code")
SETTINGS = Settings("gdfq", BitWidths(8, 8), SCHEDULE, "mse", "portable", seed=0)

LOAD_AND_RUN = """
import sys
import numpy as np
import torch

program = torch.export.load(sys.argv[1]).module()
assert not any(name.partition(".")[0] == "gdfq_export" for name in sys.modules)
np.save(sys.argv[3], program(torch.from_numpy(np.load(sys.argv[2]))).numpy())
"""


def loaded(module: nn.Module, **changes: Any) -> LoadedModel:
    values = {
        "name": "small",
        "module": module,
        "input_size": (3, 8, 8),
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "num_classes": None,
        "resize": None,
        "weights_source": "factory",
        "weights_sha256": None,
    }
    return LoadedModel(**{**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return run(loaded(network("residual")), SETTINGS, folder / "m.onnx")


def provenance(path: Path) -> dict[str, Any]:
    (entry,) = [entry for entry in onnx.load(path).metadata_props if entry.key == "gdfq_export"]
    return json.loads(entry.value)


def test_companions_stand_beside_the_file() -> None:
    names = [path.name for path in dataclasses.astuple(companions_of(Path("x/model.onnx")))]
    assert names == ["model.onnx", "model.fakequant.pt2", "model.fp32.onnx"]


@pytest.mark.parametrize("out", ["v1.2", "model", "a.b.onnx"])
def test_companions_never_have_the_name_of_the_file(out: str) -> None:
    assert len(set(dataclasses.astuple(companions_of(Path(out))))) == 3


def test_a_run_writes_three_files_and_nothing_else(folder: Path, result: dict[str, Any]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["m.fakequant.pt2", "m.fp32.onnx", "m.onnx"]


def test_a_run_returns_the_keys_of_the_contract(result: dict[str, Any]) -> None:
    keys = {"out", "bits", "method", "seconds", "file_bytes", "fp32_bytes", "teacher_agreement", "sha256"}
    assert keys <= result.keys()
    assert result["bits"] == {"weight": 8, "activation": 8}
    json.dumps(result)


def test_a_softmax_behind_the_logits_does_not_count_as_their_error(tmp_path: Path) -> None:
    module = copy.deepcopy(network("residual"))
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    last.weight.data *= 20.0  # far apart, so that probabilities are nothing like logits
    plain, soft = (
        run(loaded(whole.eval()), SETTINGS, tmp_path / f"{name}.onnx", companions=False)
        for name, whole in (("plain", module), ("soft", nn.Sequential(module, nn.Softmax(1))))
    )
    assert soft["logit_error"] == pytest.approx(plain["logit_error"], rel=1e-6)
    assert soft["forecast"] == plain["forecast"]


def test_the_sizes_are_those_of_the_files(folder: Path, result: dict[str, Any]) -> None:
    assert result["file_bytes"] == (folder / "m.onnx").stat().st_size
    assert result["fp32_bytes"] == (folder / "m.fp32.onnx").stat().st_size


def test_the_float_file_is_the_network_before_quantization(folder: Path, result: dict[str, Any]) -> None:
    x = images(count=4)
    found = run_onnx(onnx.load(folder / "m.fp32.onnx"), x).outputs
    # 1e-4 of logits near 1: two libraries sum in different orders
    assert np.allclose(found, network("residual")(x).numpy(), atol=1e-4)


def test_the_pytorch_file_needs_nothing_but_pytorch_and_gives_the_same_logits(
    folder: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    x = images(count=5)
    np.save(tmp_path / "x.npy", x.numpy())
    command = [sys.executable, "-c", LOAD_AND_RUN, folder / "m.fakequant.pt2", tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "y.npy"), run_onnx(onnx.load(folder / "m.onnx"), x).outputs)


def test_the_file_says_how_it_was_made(folder: Path, result: dict[str, Any]) -> None:
    facts = provenance(folder / "m.onnx")
    assert (facts["method"], facts["seed"], facts["target"]) == ("gdfq", 0, "portable")
    assert facts["input"]["mean"] == [0.5, 0.5, 0.5]
    assert facts["figures"]["student_steps"] == 2


def test_the_result_and_the_file_say_which_state_was_kept_and_why(folder: Path, result: dict[str, Any]) -> None:
    kept, figures = result["kept"], result["figures"]
    better = figures["error_trained"] < figures["error_calibrated"]
    assert kept["state"] == ("trained" if better else "calibrated")
    assert f"calibrated {figures['error_calibrated']:.4g}, trained {figures['error_trained']:.4g}" in kept["why"]
    assert provenance(folder / "m.onnx")["kept"] == kept


def test_both_files_say_what_they_take_and_what_they_return(folder: Path, result: dict[str, Any]) -> None:
    for name in ("m.onnx", "m.fp32.onnx"):
        facts, model = provenance(folder / name), onnx.load(folder / name)
        assert facts["input"]["range"] == [-2.0, 2.0]
        assert (facts["input"]["channel_order"], facts["input"]["values"]) == ("RGB", "pixels")
        assert facts["output"] == {"meaning": "logits", "labels": None}
        assert model.model_version == 1
        assert "-2 to 2 (pixels in 0..1, mean 0.5, std 0.25)" in model.doc_string
        assert "channels RGB" in model.graph.input[0].doc_string
        assert model.graph.output[0].doc_string == "logits"
    assert result["input"] == provenance(folder / "m.onnx")["input"]


def test_an_input_that_is_no_image_keeps_its_range_from_the_images_to_the_file(tmp_path: Path) -> None:
    labels = tuple("abcde")
    features = loaded(network("plain"), mean=(0.0,) * 3, std=(1.0,) * 3, input_range=(-3.0, 2.0), labels=labels)
    prepared = prepare(features, SETTINGS)
    assert (prepared.image.low, prepared.image.high) == ((-3.0,) * 3, (2.0,) * 3)
    exported = quantize_model(prepared, SETTINGS)
    assert exported.outcome.held_back.min() < -1
    write_files(exported, SETTINGS, tmp_path / "m.onnx", companions=False)
    facts = provenance(tmp_path / "m.onnx")
    assert facts["input"]["range"] == [-3.0, 2.0]
    assert (facts["input"]["channel_order"], facts["input"]["values"]) == (None, "features")
    assert facts["output"]["labels"] == list(labels)
    scale = next(t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if t.name == "input/scale")
    assert onnx.numpy_helper.to_array(scale) == np.float32(5 / 255)


def test_a_range_above_zero_is_told_with_the_zero_that_the_codes_hold() -> None:
    features = loaded(network("plain"), mean=(0.0,) * 3, std=(1.0,) * 3, input_range=(1.0, 2.0))
    assert accepted_range(prepare(features, SETTINGS)) == (0.0, 2.0)


def test_a_resumed_run_has_the_same_input(tmp_path: Path) -> None:
    first, other = (
        run_facts(prepare(loaded(network("plain"), **changes), SETTINGS), SETTINGS)
        for changes in (
            {},
            {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_range": (-2.0, 2.0), "labels": tuple("abcde")},
        )
    )
    assert {name for name in first if first[name] != other[name]} == {"mean", "std", "input_range", "labels"}


def test_bytes_have_no_range_of_their_own() -> None:
    settings = dataclasses.replace(SETTINGS, input_format="uint8-nhwc")
    with pytest.raises(UsageError, match="leave --input-range out"):
        prepare(loaded(network("plain"), input_range=(-2.0, 2.0)), settings)


def test_labels_must_be_one_a_class() -> None:
    with pytest.raises(InputFileError, match="4 lines, but the network tells 5"):
        prepare(loaded(network("plain"), labels=tuple("abcd")), SETTINGS)


def test_the_input_scale_covers_black_and_white(folder: Path, result: dict[str, Any]) -> None:
    scale = next(t for t in onnx.load(folder / "m.onnx").graph.initializer if t.name == "input/scale")
    assert onnx.numpy_helper.to_array(scale) == np.float32(4 / 255)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("first.onnx", "second.onnx")]
    settings = dataclasses.replace(SETTINGS, seed=3)
    for path in paths:
        torch.manual_seed(hash(path))
        run(loaded(network("plain")), settings, path, companions=False)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_another_seed_gives_other_bytes(tmp_path: Path) -> None:
    sums = {
        run(loaded(network("plain")), dataclasses.replace(SETTINGS, seed=seed), tmp_path / f"{seed}", companions=False)[
            "sha256"
        ]
        for seed in (0, 1)
    }
    assert len(sums) == 2


def test_without_companions_only_the_file_is_written(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, method="calibrate")
    run(loaded(network("plain")), settings, tmp_path / "m.onnx", companions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert provenance(tmp_path / "m.onnx")["fakequant_sha256"] is None


def test_a_network_without_batch_norm_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    bare = Net(lambda m, x: m.fc(pooled(F.relu(m.conv(x)))), conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 5))
    with pytest.raises(UnsupportedModelError, match="no batch norm"):
        run(loaded(bare), SETTINGS, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_maps_in_place_of_logits_are_refused() -> None:
    model = randomize(Net(lambda m, x: m.norm(m.conv(x)), conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))
    with pytest.raises(UnsupportedModelError, match=r"\[4, 6, 6\]"):
        prepare(loaded(model), SETTINGS)


def test_a_wrong_number_of_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="has 5 outputs"):
        prepare(loaded(network("plain"), num_classes=7), SETTINGS)


def test_the_plan_of_a_prepared_network_is_that_of_its_folded_graph() -> None:
    prepared = prepare(loaded(network("plain")), SETTINGS)
    assert [node.name for node in prepared.folded.nodes] == [node.name for node in pad_input(folded("plain")).nodes]
    assert prepared.plan.weights.keys() == {"a.0", "b.0", "fc"}
    assert len(prepared.captured.of("batch_norm")) == 2


@pytest.mark.parametrize("error", [UnsupportedModelError, UsageError])
def test_refusals_are_errors_of_ours(error: type[Exception]) -> None:
    assert issubclass(error, GdfqError)


@pytest.mark.parametrize("name", ["one_logit", "sigmoid_end"])
def test_decisions_agree_where_each_is_on_the_same_side_of_its_threshold(name: str) -> None:
    teacher, x = FloatProgram(folded(name)), images(count=40)
    answers, threshold = teacher(x), 0.5 if name == "sigmoid_end" else 0.0
    constant = threshold - answers.median()  # the same for every image and output, which would change no class
    same = (answers > threshold) == (answers + constant > threshold)
    assert 0 < int(same.sum()) < same.numel()
    student: Any = lambda batch: teacher(batch) + constant  # noqa: E731
    agreement, error = against_teacher(student, teacher, x, silent)
    assert agreement == pytest.approx(100 * float(same.double().mean()))
    assert 0.0 < error < 1.0
    assert against_teacher(teacher, teacher, x, silent) == (100.0, pytest.approx(0.0, abs=1e-9))
