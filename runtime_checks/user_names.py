"""What the user calls the tensors and layers of a file whose own names are short (4 bits and fewer).

metadata `gdfq_export`: names = {name in the file: name by the path of the module}, or base64(zlib(JSON)) of that
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from typing import Any

from gdfq_export.runtime_checks.errors import CheckError

_MAX_BYTES = 1 << 24
_NAMED = frozenset({"layer", "tensor", "name"})
_LISTS = frozenset({"changed", "float_ops", "integer_ops"})


def user_names(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Name in the file -> the user's; empty where the file's names are the user's."""
    stored = provenance.get("names", {})
    try:
        if isinstance(stored, str):
            text = zlib.decompressobj().decompress(base64.b64decode(stored, validate=True), _MAX_BYTES)
            stored = json.loads(text)
        if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored.values()):
            raise ValueError("an object of strings is expected")
    except (ValueError, zlib.error, binascii.Error) as error:
        raise CheckError(f"metadata 'gdfq_export' is damaged: its names cannot be read ({error})") from error
    return stored


def with_user_names(report: Any, names: Mapping[str, str]) -> Any:
    """A report of JSON values in which layers and tensors have the user's names."""
    if isinstance(report, list):
        return [with_user_names(item, names) for item in report]
    if not isinstance(report, dict):
        return report
    return {key: _renamed(key, value, names) for key, value in report.items()}


def _renamed(key: str, value: Any, names: Mapping[str, str]) -> Any:
    if key in _NAMED and isinstance(value, str):
        return names.get(value, value)
    if key in _LISTS and isinstance(value, list):
        return [names.get(item, item) if isinstance(item, str) else with_user_names(item, names) for item in value]
    return with_user_names(value, names)
