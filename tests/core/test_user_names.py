"""Files with short names are reported by the names of the user's modules."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import onnx
import pytest
from stages import integer_model

from gdfq_export.emit import onnx_from_integer_model, onnx_with_names
from gdfq_export.provenance import PLAIN_NAMES, names_fact, stamp
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.inspect import inspect_model
from gdfq_export.runtime_checks.profile import profile_model
from gdfq_export.runtime_checks.user_names import user_names, with_user_names
from gdfq_export.runtime_checks.verify import verify_model


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("narrow") / "m.onnx"
    model, names = onnx_with_names(integer_model("residual", 4, 4))
    stamp(model, {"input": {"shape": [3, 8, 8]}, "target": "arm64", **names_fact(names)}, None)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def long_names() -> set[str]:
    """Those of a file of 8-bit weights and narrow activations, which are not short."""
    graph = onnx_from_integer_model(integer_model("residual", 8, 4)).graph
    groups = {tensor.name.rpartition("/")[0] for tensor in graph.initializer}
    tensors = {name for node in graph.node for name in node.output}
    return groups | tensors | {node.name.rpartition(":")[0] for node in graph.node}


def test_a_short_and_a_long_table_are_read_back() -> None:
    for count in (1, 100):
        names = {str(index): f"layer{index}.conv" for index in range(count)}
        assert user_names(names_fact(names)) == names
    assert isinstance(names_fact(names)["names"], str)
    assert len(json.dumps(names)) > PLAIN_NAMES
    assert user_names({}) == {}


def test_a_file_with_the_users_names_has_no_table() -> None:
    assert names_fact(onnx_with_names(integer_model("residual", 8, 8))[1]) == {}


@pytest.mark.parametrize(
    "stored", ["?", base64.b64encode(b"x").decode(), base64.b64encode(zlib.compress(b"[")).decode()]
)
def test_a_table_that_cannot_be_read_is_named(stored: str) -> None:
    with pytest.raises(CheckError, match="names"):
        user_names({"names": stored})


@pytest.mark.parametrize("stored", [[], 3, {"e": 1}])
def test_a_table_of_another_kind_is_named(stored: object) -> None:
    with pytest.raises(CheckError, match="names"):
        user_names({"names": stored})


def test_a_report_is_renamed_where_it_names_layers_and_tensors() -> None:
    report = {"layer": "e", "detail": "e", "rows": [{"tensor": "f", "share": 1}], "changed": ["e", ""]}
    named = with_user_names(report, {"e": "conv1", "f": "conv1.q"})
    assert named == {
        "layer": "conv1",
        "detail": "e",
        "rows": [{"tensor": "conv1.q", "share": 1}],
        "changed": ["conv1", ""],
    }


def test_verify_names_activations_as_in_a_wide_file(narrow: Path, long_names: set[str]) -> None:
    result = verify_model(narrow, samples=1, threads=1)
    names = user_names(json.loads(onnx.load(narrow).metadata_props[0].value))
    report = with_user_names(result.to_json(), names)
    shown = {item[key] for item in report["activations"] for key in ("layer", "tensor")}
    shown |= {row["layer"] for row in report["not_proved"]} | set(report["float_ops"])
    assert shown
    assert shown <= long_names


def test_inspect_and_the_profile_name_operators_as_in_a_wide_file(narrow: Path, long_names: set[str]) -> None:
    moved = "Transpose"  # of the runtime itself, for its layout
    shown = {node.name for node in inspect_model(narrow).nodes if node.kernel != moved}
    shown |= {kernel.name for kernel in profile_model(narrow).kernels if kernel.op != moved}
    assert shown <= long_names
