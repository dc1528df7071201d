"""The metadata entries of `quantize`: read, found to be well formed, and what a file of this tool lacks of them.

gdfq_export          JSON provenance: format, target, input {format, shape, mean, std}, fakequant_sha256, ...
gdfq_export.hashes   see `hashes.py`
gdfq_export.golden   see `golden.py`
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import onnx

from gdfq_export.runtime_checks.errors import CheckError

PROVENANCE_KEY = "gdfq_export"
HASHES_KEY = "gdfq_export.hashes"
GOLDEN_KEY = "gdfq_export.golden"
FORMAT = 1
"""The version of what stands in the entries."""

_SIMULATION = ("images", "elements", "differing", "share", "max_steps", "top1_agreement")
_FLOAT_NETWORK = {"format", "input", "output"}  # all that is written into the float network, which promises nothing


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_step(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(size) is int and 0 < size < 1 << 31 for size in value)


def _is_input(value: Any) -> bool:
    return isinstance(value, dict) and _is_sizes(value.get("shape", [1])) and isinstance(value.get("format", ""), str)


_EXPECTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "target": (lambda value: isinstance(value, str), "a name"),
    "input": (_is_input, "an object whose shape is a list of sizes"),
    "output_step": (_is_step, "a positive number"),
    "float_ending": (lambda value: isinstance(value, bool), "true or false"),
    "float_parts": (_is_names, "a list of names"),
    "fakequant_sha256": (lambda value: value is None or isinstance(value, str), "a checksum or null"),
}
"""Facts that a check reads -> (what they have to be, in words)."""

_NEEDED = {
    "target": "the target, for which the proofs must hold",
    "input": "how an image becomes an input",
    "float_parts": "the list of float parts",
    "fakequant_sha256": "the checksum of the PyTorch program (null where it was written without one)",
}


def read_entry(model: onnx.ModelProto, key: str) -> dict[str, Any]:
    """The JSON object of a metadata entry; empty where there is none."""
    try:
        text = next((entry.value for entry in model.metadata_props if entry.key == key), None)
        value = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
        raise CheckError(f"metadata '{key}' is damaged ({error})") from error
    if not isinstance(value, dict):
        raise CheckError(f"metadata '{key}' is damaged: an object is expected")
    return value


def read_provenance(model: onnx.ModelProto) -> dict[str, Any]:
    """The provenance; empty for files that other tools made."""
    provenance = read_entry(model, PROVENANCE_KEY)
    version = provenance.get("format", FORMAT)
    if version != FORMAT:
        raise CheckError(f"metadata '{PROVENANCE_KEY}' has format {version!r}, this version reads {FORMAT}; update it")
    for key, (is_well_formed, wanted) in _EXPECTED.items():
        if key in provenance and not is_well_formed(provenance[key]):
            found = json.dumps(provenance[key])[:60]
            raise CheckError(f"metadata '{PROVENANCE_KEY}' is damaged: its {key} is {found}, and has to be {wanted}")
    return provenance


def read_simulation(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """How far the float simulation of training was from the integers when the file was made; None where it is not said.

    {images, elements, differing, share, max_steps, top1_agreement}
    """
    stated = provenance.get("simulation")
    if stated is None:
        return None
    if not isinstance(stated, dict) or not all(_is_number(stated.get(key)) for key in _SIMULATION):
        raise CheckError(f"metadata '{PROVENANCE_KEY}' is damaged: its simulation lacks a number")
    return {key: stated[key] for key in _SIMULATION}


def says_it_is_ours(model: onnx.ModelProto) -> bool:
    """Whether the file says that `quantize` made it; the float network beside it only says what its input is."""
    keys = {entry.key for entry in model.metadata_props}
    return bool({HASHES_KEY, GOLDEN_KEY} & keys) or bool(read_entry(model, PROVENANCE_KEY).keys() - _FLOAT_NETWORK)


def missing_facts(model: onnx.ModelProto) -> list[str]:
    """What a file of this tool has to state and does not; none for the files of other tools."""
    if not says_it_is_ours(model):
        return []
    provenance = read_entry(model, PROVENANCE_KEY)
    missing = [text for key, text in _NEEDED.items() if key not in provenance]
    if not read_entry(model, GOLDEN_KEY) and not provenance.get("float_parts"):
        missing.append("the golden vectors")
    return missing
