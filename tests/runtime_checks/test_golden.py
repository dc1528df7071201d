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
from gdfq_export.runtime_checks.hashes import changed_groups, group_hashes
from gdfq_export.runtime_checks.metadata import read_provenance


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


def test_hashes_that_were_taken_out_are_missed() -> None:
    model = seal(small_network())
    model.metadata_props.remove(next(item for item in model.metadata_props if item.key == "gdfq_export.hashes"))
    with pytest.raises(CheckError, match="missing"):
        changed_groups(model)
