"""A hash of each layer's parameters, of the graph, and of what the metadata says: a changed bit has a place.

    gdfq_export.hashes   {group: first 16 hex digits of sha256}

    <layer>              its initializers, named `<layer>/<role>`, sorted by name, each as
                         name \\0 data_type \\0 dims \\0 raw little-endian bytes
    ""                   the graph: its serialized nodes in order
    gdfq_export/input    how an image becomes an input: mean, std, resize, ... as JSON with sorted keys
    gdfq_export/facts    everything else that the provenance says

Files from before the last two existed have hashes without them, and are checked by the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import numpy_helper

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.metadata import HASHES_KEY, PROVENANCE_KEY, read_entry, says_it_is_ours

GRAPH_GROUP = ""
INPUT_GROUP = "gdfq_export/input"
FACTS_GROUP = "gdfq_export/facts"
METADATA_GROUPS = (INPUT_GROUP, FACTS_GROUP)

_HASH_DIGITS = 16


def changed_groups(model: onnx.ModelProto) -> list[str] | None:
    """Groups that are not those that were hashed ("" for the graph itself); None without hashes."""
    stored = read_entry(model, HASHES_KEY)
    if not stored and says_it_is_ours(model):
        raise CheckError(f"metadata '{HASHES_KEY}' is missing from a file of this tool: the metadata is damaged")
    if not stored:
        return None
    current = {**group_hashes(model), **metadata_hashes(read_entry(model, PROVENANCE_KEY))}
    for group in METADATA_GROUPS:
        if group not in stored:
            del current[group]
    return sorted(group for group in stored.keys() | current.keys() if stored.get(group) != current.get(group))


def unhashed_metadata(model: onnx.ModelProto) -> list[str]:
    """The groups of the metadata that a file of this tool has no hash of."""
    return [group for group in METADATA_GROUPS if group not in read_entry(model, HASHES_KEY)]


def group_hashes(model: onnx.ModelProto) -> dict[str, str]:
    """The hash of each group of initializers, and of the graph."""
    groups: dict[str, list[onnx.TensorProto]] = {}
    for tensor in model.graph.initializer:
        groups.setdefault(tensor.name.rpartition("/")[0] or tensor.name, []).append(tensor)
    hashes = {group: _digest(map(_tensor_bytes, sorted(items, key=_name))) for group, items in groups.items()}
    hashes[GRAPH_GROUP] = _digest(node.SerializeToString(deterministic=True) for node in model.graph.node)
    return hashes


def metadata_hashes(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The hash of what the provenance says of the input, and of the rest."""
    rest = {key: value for key, value in provenance.items() if key != "input"}
    return {
        group: _digest([json.dumps(value, sort_keys=True, separators=(",", ":")).encode()])
        for group, value in ((INPUT_GROUP, provenance.get("input")), (FACTS_GROUP, rest))
    }


def _tensor_bytes(tensor: onnx.TensorProto) -> bytes:
    raw = tensor.raw_data
    if not tensor.HasField("raw_data"):
        raw = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    dims = ",".join(map(str, tensor.dims))
    return b"\0".join((tensor.name.encode(), str(tensor.data_type).encode(), dims.encode(), raw))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:_HASH_DIGITS]


def _name(tensor: onnx.TensorProto) -> str:
    return str(tensor.name)
