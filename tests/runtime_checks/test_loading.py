"""Bad input: one clear sentence and the right exit code, and nothing that dies or reads where it should not."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from qdq_builder import Builder, small_network

from gdfq_export.runtime_checks.errors import CheckError, MemoryLimitError, UnsupportedGraphError
from gdfq_export.runtime_checks.inspect import inspect_model
from gdfq_export.runtime_checks.loading import load_model
from gdfq_export.runtime_checks.verify import verify_model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def with_external_weights(folder: Path, location: str = "weights.bin", **entries: str) -> Path:
    """The small network with the stem's weights in another file."""
    model = small_network()
    tensor = next(item for item in model.graph.initializer if item.name == "stem/weight")
    data = tensor.raw_data
    target = folder / location
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(len(data)), **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return saved(model, folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"hello, this is not a model at all", "not an ONNX file"),
        (b"PK\x03\x04 and more", "a zip archive"),
        (b"\x80\x02}q\x00", "a pickle"),
        (b"\x18\x00\x00\x00TFL3....", "a TensorFlow Lite file"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    ],
)
def test_a_file_that_is_not_onnx_is_named(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckError, match=expected):
        load_model(path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="no such file"):
        load_model(tmp_path / "nothing.onnx")
    with pytest.raises(CheckError, match="not a file"):
        load_model(tmp_path)


def test_a_file_truncated_anywhere_is_refused_or_fails_its_check(tmp_path: Path) -> None:
    whole = small_network().SerializeToString()
    path = tmp_path / "model.onnx"
    for share in np.linspace(0.02, 0.98, 25):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckError):
            verify_model(path, samples=1)


def test_flipped_bits_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = small_network().SerializeToString()
    path = tmp_path / "model.onnx"
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(CheckError):
            verify_model(path, samples=1)


@pytest.mark.parametrize(("opset", "expected"), [(9, "too old"), (99, "newer than")])
def test_operator_versions_out_of_range_are_refused(opset: int, expected: str, tmp_path: Path) -> None:
    model = small_network()
    model.opset_import[0].version = opset
    with pytest.raises(UnsupportedGraphError, match=expected):
        load_model(saved(model, tmp_path))


def test_a_custom_operator_is_named_with_its_node(tmp_path: Path) -> None:
    model = small_network()
    model.graph.node[3].domain = "my.company"
    model.opset_import.add(domain="my.company", version=1)
    with pytest.raises(UnsupportedGraphError, match=r"custom operator my\.company\.\w+ \(node '.+'\)"):
        load_model(saved(model, tmp_path))


def test_several_inputs_are_refused_by_name(tmp_path: Path) -> None:
    model = small_network()
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1]))
    with pytest.raises(UnsupportedGraphError, match=r"2 \(input, second\)"):
        load_model(saved(model, tmp_path))


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    path = with_external_weights(tmp_path, checksum=hashlib.sha1(b"").hexdigest())
    with pytest.raises(CheckError, match="belongs to another model"):
        load_model(path)
    path = with_external_weights(tmp_path)
    loaded = {item.name: item for item in load_model(path).graph.initializer}
    original = {item.name: item for item in small_network().graph.initializer}
    assert loaded["stem/weight"].raw_data == original["stem/weight"].raw_data
    assert verify_model(path, samples=2).passed


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "below/../../outside.bin"])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = with_external_weights(folder)
    (tmp_path / "outside.bin").write_bytes(b"0" * 4096)
    model = onnx.load(path, load_external_data=False)
    tensor = next(item for item in model.graph.initializer if item.name == "stem/weight")
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    with pytest.raises(CheckError, match="outside the model's folder"):
        load_model(saved(model, folder))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = with_external_weights(folder)
    shutil.move(folder / "weights.bin", tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(CheckError, match="outside the model's folder"):
        load_model(path)


def test_external_data_that_is_missing_or_too_short_is_refused(tmp_path: Path) -> None:
    path = with_external_weights(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-1])
    with pytest.raises(CheckError, match="too short"):
        load_model(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CheckError, match="missing beside the model"):
        load_model(path)


def test_a_model_that_takes_gigabytes_is_refused_before_it_runs(tmp_path: Path) -> None:
    net = Builder()
    x = net.conv(net.quantize("input", "in", 0.02, 128), "conv", (3, 8))
    net.constant("factor", np.array([1, 1, 400, 400], np.float32))
    large = net.node("Resize", [x.name, "", "factor"], "large", mode="nearest")
    y = net.quantize(large, "resized", float(x.scale))
    model = net.model(y.codes, (3, 64, 64), output_type=TensorProto.UINT8, output_rank=4)
    with pytest.raises(MemoryLimitError, match="--max-memory"):
        verify_model(saved(model, tmp_path), samples=1)


def test_a_file_larger_than_the_limit_is_not_even_read(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="memory limit"):
        load_model(saved(small_network(), tmp_path), max_memory=1000)


def plain_float() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    return _model([node], [weight])


def weights_only() -> onnx.ModelProto:
    constants = [
        numpy_helper.from_array(np.ones((2, 3, 1, 1), np.int8), "codes"),
        numpy_helper.from_array(np.float32(0.1), "scale"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    return _model(nodes, constants)


def dynamic() -> onnx.ModelProto:
    constants = [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.uint8), "w")]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("ConvInteger", ["codes", "w", "zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
    ]
    return _model(nodes, constants)


def _model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    return model


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (plain_float, "a float network that is not quantized"),
        (weights_only, "quantized weights and float activations"),
        (dynamic, "a dynamically quantized network"),
    ],
    ids=["float", "weights only", "dynamic"],
)
def test_a_network_that_is_not_qdq_is_told_what_it_is(
    build: Callable[[], onnx.ModelProto], expected: str, tmp_path: Path
) -> None:
    path = saved(build(), tmp_path)
    for check in (verify_model, inspect_model):
        with pytest.raises(UnsupportedGraphError, match=expected):
            check(path)


def test_exit_codes_tell_damaged_from_unsupported() -> None:
    assert CheckError.exit_code == MemoryLimitError.exit_code == 4
    assert UnsupportedGraphError.exit_code == 3
