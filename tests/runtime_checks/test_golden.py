"""The metadata that a file carries about itself: read by the contract, refused where damaged."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from qdq_builder import seal, small_network

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.golden import read_golden
from gdfq_export.runtime_checks.hashes import changed_groups, group_hashes, unhashed_metadata
from gdfq_export.runtime_checks.metadata import missing_facts, read_provenance


def edit(model: onnx.ModelProto, key: str, **changes: Any) -> onnx.ModelProto:
    entry = next(item for item in model.metadata_props if item.key == key)
    entry.value = json.dumps({**json.loads(entry.value), **changes})
    return model


def test_a_groups_hash_follows_the_contract() -> None:
    """Name, type, dims and raw bytes, of the group's initializers in the order of their names."""
    model = small_network()
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda item: item.name):
        if tensor.name.startswith("stem/"):
            dims = ",".join(str(size) for size in tensor.dims)
            digest.update(f"{tensor.name}\0{tensor.data_type}\0{dims}\0".encode() + tensor.raw_data)
    assert group_hashes(model)["stem"] == digest.hexdigest()[:16]


def test_the_graphs_hash_runs_over_its_nodes() -> None:
    model = small_network()
    digest = hashlib.sha256(b"".join(node.SerializeToString(deterministic=True) for node in model.graph.node))
    assert group_hashes(model)[""] == digest.hexdigest()[:16]


def test_typed_fields_and_raw_bytes_hash_alike() -> None:
    raw, typed = small_network(), small_network()
    tensor = next(item for item in typed.graph.initializer if item.name == "stem/bias")
    values = numpy_helper.to_array(tensor).tolist()
    tensor.ClearField("raw_data")
    tensor.int32_data.extend(values)
    assert group_hashes(raw)["stem"] == group_hashes(typed)["stem"]


def test_a_file_of_another_tool_has_no_metadata() -> None:
    model = small_network()
    assert read_provenance(model) == {}
    assert read_golden(model) is None
    assert changed_groups(model) is None


@pytest.mark.parametrize("name", ["stem/weight", "stem/scale", "block.conv2/zero_point", "classifier/bias"])
def test_every_single_flipped_bit_of_a_parameter_is_caught_and_its_group_named(name: str) -> None:
    model = seal(small_network())
    tensor = next(item for item in model.graph.initializer if item.name == name)
    whole = tensor.raw_data
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << index % 8
        tensor.raw_data = bytes(damaged)
        assert changed_groups(model) == [name.rpartition("/")[0]]
    tensor.raw_data = whole
    assert changed_groups(model) == []


def test_stored_images_are_enlarged_and_cut_to_the_input() -> None:
    spec = {"format": "float-nchw", "shape": [3, 11, 12]}
    golden = read_golden(edit(seal(small_network()), "gdfq_export", input=spec))
    assert golden is not None
    assert golden.codes.shape == (2, 3, 11, 12)
    assert np.array_equal(golden.codes[:, :, 0:10:2], golden.codes[:, :, 1:11:2])
    assert golden.outputs.shape == (2, 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": "not base64!"},
        {"codes": "AAAA"},
        {"shape": [2, 3]},
        {"shape": [2, 3, 1 << 20, 1 << 20]},
        {"repeat": 0},
        {"repeat": "many"},
        {"output_dtype": "object"},
        {"output_shape": [3, 10]},
    ],
)
def test_damaged_vectors_are_refused_in_a_sentence(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckError, match=r"gdfq_export\.golden"):
        read_golden(edit(seal(small_network()), "gdfq_export.golden", **changes))


def test_a_later_format_asks_for_an_update() -> None:
    with pytest.raises(CheckError, match="has format 2"):
        read_provenance(edit(seal(small_network()), "gdfq_export", format=2))


def without(model: onnx.ModelProto, key: str, *facts: str) -> onnx.ModelProto:
    """A copy without a metadata entry, or without some of what it says."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    entry = next(item for item in copy.metadata_props if item.key == key)
    if facts:
        entry.value = json.dumps({name: value for name, value in json.loads(entry.value).items() if name not in facts})
    else:
        copy.metadata_props.remove(entry)
    return copy


@pytest.mark.parametrize(
    ("key", "facts", "missing"),
    [
        ("gdfq_export.golden", (), "the golden vectors"),
        ("gdfq_export", ("fakequant_sha256",), "the checksum of the PyTorch program"),
        ("gdfq_export", ("float_parts",), "the list of float parts"),
        ("gdfq_export", ("target",), "the target"),
        ("gdfq_export", ("input",), "how an image becomes an input"),
    ],
)
def test_what_a_file_of_this_tool_lacks_is_named(key: str, facts: tuple[str, ...], missing: str) -> None:
    assert missing_facts(seal(small_network())) == []
    (found,) = missing_facts(without(seal(small_network()), key, *facts))
    assert missing in found


def test_a_file_without_companions_says_so_with_null_and_lacks_nothing() -> None:
    assert missing_facts(seal(small_network(), fakequant_sha256=None)) == []


def test_a_file_with_float_parts_needs_no_golden_vectors() -> None:
    assert missing_facts(without(seal(small_network(), float_parts=["softmax at a"]), "gdfq_export.golden")) == []


def test_a_file_of_another_tool_and_the_float_network_lack_nothing() -> None:
    assert missing_facts(small_network()) == []
    alone = small_network()
    alone.metadata_props.add(key="gdfq_export", value=json.dumps({"format": 1, "input": {"shape": [3, 12, 12]}}))
    assert missing_facts(alone) == []


@pytest.mark.parametrize(
    ("changes", "group"),
    [
        ({"input": {"format": "float-nchw", "shape": [3, 12, 12], "mean": [0.4] * 3}}, "gdfq_export/input"),
        ({"float_parts": ["softmax at a"]}, "gdfq_export/facts"),
        ({"target": "arm64"}, "gdfq_export/facts"),
        ({"fakequant_sha256": "0"}, "gdfq_export/facts"),
    ],
)
def test_a_changed_fact_is_found_by_its_hash(changes: dict[str, Any], group: str) -> None:
    assert changed_groups(seal(small_network())) == []
    assert changed_groups(edit(seal(small_network()), "gdfq_export", **changes)) == [group]


def test_the_order_of_facts_does_not_matter() -> None:
    model = seal(small_network())
    entry = next(item for item in model.metadata_props if item.key == "gdfq_export")
    entry.value = json.dumps(dict(reversed(json.loads(entry.value).items())), indent=1)
    assert changed_groups(model) == []


def test_files_from_before_facts_were_hashed_are_checked_by_the_other_hashes() -> None:
    model = without(seal(small_network()), "gdfq_export.hashes", "gdfq_export/input", "gdfq_export/facts")
    assert changed_groups(edit(model, "gdfq_export", target="arm64")) == []
    assert unhashed_metadata(model) == ["gdfq_export/input", "gdfq_export/facts"]
    next(item for item in model.graph.initializer if item.name == "stem/scale").raw_data = b"abcd"
    assert changed_groups(model) == ["stem"]


def test_hashes_that_were_taken_out_are_missed() -> None:
    model = seal(small_network())
    model.metadata_props.remove(next(item for item in model.metadata_props if item.key == "gdfq_export.hashes"))
    with pytest.raises(CheckError, match="missing"):
        changed_groups(model)
